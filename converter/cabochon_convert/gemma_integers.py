"""Integers of checkpoints with `quant_method: gemma`, as transformers' `integrations/gemma_quant.py` defines them.

A linear layer `NAME` has

    NAME.weight                          [outputs, inputs] int8, or 2 or 4 values a byte, low bits first, unsigned
    NAME.weight_scale                    [outputs, 1]
    NAME.{input,output}_activation_scale []; 0 or absent where activations are not rounded

and an embedding `NAME.embedding_quantized` and `NAME.embedding_scale` [rows, groups].
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cabochon_convert.checkpoint import Checkpoint, CheckpointError
from cabochon_convert.quantization_config import GemmaQuantization
from cabochon_convert.quantize import Precision, unpack
from cabochon_convert.recipes import EMBEDDING, PER_LAYER_EMBEDDING
from cabochon_convert.trained_integers import ActivationScales, IntegerRows, trained_precision


class GemmaIntegers:
    """See `TrainedIntegers`."""

    def __init__(self, checkpoint: Checkpoint, quantization: GemmaQuantization) -> None:
        self._checkpoint = checkpoint
        self._quantization = quantization

    @property
    def notes(self) -> tuple[str, ...]:
        """See `TrainedIntegers.notes`."""
        return ()

    def precision(self, tensor: str, shape: tuple[int, int]) -> Precision | None:
        """See `TrainedIntegers.precision`."""
        bits = self._bits(tensor)
        if bits is None:
            return None
        return trained_precision(tensor, bits, shape[1], self._group_count(tensor, shape))

    def rows(self, tensor: str, shape: tuple[int, int], rows: range) -> Iterator[IntegerRows]:
        """See `TrainedIntegers.rows`."""
        bits = self._bits(tensor)
        if bits is None:
            raise ValueError(f"{tensor} is floating point")
        values, scale = _names(tensor)
        scales = self._checkpoint.read(scale, (shape[0], self._group_count(tensor, shape)))
        packed_shape = (shape[0], -(-shape[1] * bits // 8))
        first = rows.start
        for part in self._checkpoint.read_integer_rows(values, packed_shape, "I8" if bits == 8 else "U8", rows):
            yield IntegerRows(_to_unsigned(part, bits)[:, : shape[1]], scales[first : first + len(part)])
            first += len(part)

    def activation_scales(self, tensor: str) -> ActivationScales:
        """See `TrainedIntegers.activation_scales`."""
        if tensor in (EMBEDDING, PER_LAYER_EMBEDDING) or self._bits(tensor) is None:
            return ActivationScales()
        module = tensor.removesuffix(".weight")
        return ActivationScales(
            *(self._activation_scale(f"{module}.{side}_activation_scale") for side in ("input", "output"))
        )

    def _bits(self, tensor: str) -> int | None:
        is_embedding = tensor in (EMBEDDING, PER_LAYER_EMBEDDING)
        return self._quantization.bits_of(tensor.removesuffix(".weight"), is_embedding=is_embedding)

    def _group_count(self, tensor: str, shape: tuple[int, int]) -> int:
        """Scales of one row: tables may have several, linear layers have one."""
        _, scale = _names(tensor)
        found = self._checkpoint.record(scale).shape
        most = shape[1] if tensor in (EMBEDDING, PER_LAYER_EMBEDDING) else 1
        if len(found) != 2 or found[0] != shape[0] or not 0 < found[1] <= most:
            raise CheckpointError(
                f"the tensor {scale} has shape {list(found)}, but config.json leads to {[shape[0], 1]}: "
                "the weights do not belong to this config."
            )
        return found[1]

    def _activation_scale(self, name: str) -> float:
        if name not in self._checkpoint:
            return 0.0
        scale = float(self._checkpoint.read(name, ()))
        if scale < 0:
            raise CheckpointError(f"the tensor {name} is {scale}, expected a scale of 0 or more: get it again.")
        return scale


def _names(tensor: str) -> tuple[str, str]:
    """Where the checkpoint keeps the values and the scales of a weight matrix."""
    module = tensor.removesuffix(".weight")
    if tensor in (EMBEDDING, PER_LAYER_EMBEDDING):
        return f"{module}.embedding_quantized", f"{module}.embedding_scale"
    return tensor, f"{module}.weight_scale"


def _to_unsigned(stored: npt.NDArray[np.integer], bits: int) -> npt.NDArray[np.uint8]:
    """8 bits are stored signed, fewer as the package has them."""
    if bits == 8:
        return stored.view(np.uint8) ^ np.uint8(128)
    return unpack(stored.view(np.uint8), bits)
