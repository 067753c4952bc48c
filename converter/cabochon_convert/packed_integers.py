"""Integers of checkpoints with `quant_method: compressed-tensors` and the format pack-quantized.

compressed-tensors defines it in `compressors/pack_quantized`. A linear layer `NAME` has

    NAME.weight_packed   [outputs, words] int32: the integers plus 2 ** (bits - 1), without gaps, low bits first
    NAME.weight_scale    [outputs, groups]
    NAME.weight_shape    [2] int64: outputs, inputs

and a layer that is not quantized its NAME.weight. The same holds for embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cabochon_convert.checkpoint import Checkpoint, CheckpointError
from cabochon_convert.quantization_config import CompressedTensorsQuantization, PackedScheme
from cabochon_convert.quantize import Precision, unpack
from cabochon_convert.recipes import EMBEDDING, PER_LAYER_EMBEDDING
from cabochon_convert.trained_integers import ActivationScales, IntegerRows, trained_precision

_WORD_BITS = 32
_PARTS = ("weight_packed", "weight_scale", "weight_shape")


class PackedIntegers:
    """See `TrainedIntegers`.

    Raises:
        CheckpointError: a quantized layer has tensors that are not known, such as zero points or an order of inputs.
    """

    def __init__(self, checkpoint: Checkpoint, quantization: CompressedTensorsQuantization) -> None:
        self._checkpoint = checkpoint
        self._quantization = quantization
        packed = {name.removesuffix(".weight_packed") for name in checkpoint.names if name.endswith(".weight_packed")}
        for name in checkpoint.names:
            module, _, part = name.rpartition(".")
            if module in packed and part.startswith("weight") and part not in _PARTS:
                raise CheckpointError(
                    f"the checkpoint has the tensor {name} beside {module}.weight_packed, which cannot be carried over "
                    "exactly: convert its unquantized (bf16) original."
                )

    @property
    def notes(self) -> tuple[str, ...]:
        """See `TrainedIntegers.notes`."""
        return ()

    def precision(self, tensor: str, shape: tuple[int, int]) -> Precision | None:
        """See `TrainedIntegers.precision`."""
        scheme = self._scheme(tensor)
        if scheme is None:
            return None
        return trained_precision(tensor, scheme.bits, shape[1], _group_count(tensor, shape, scheme))

    def rows(self, tensor: str, shape: tuple[int, int], rows: range) -> Iterator[IntegerRows]:
        """See `TrainedIntegers.rows`."""
        scheme = self._scheme(tensor)
        if scheme is None:
            raise ValueError(f"{tensor} is floating point")
        self._check_shape(tensor, shape)
        scales = self._checkpoint.read(f"{tensor}_scale", (shape[0], _group_count(tensor, shape, scheme)))
        packed_shape = (shape[0], -(-shape[1] * scheme.bits // _WORD_BITS))
        first = rows.start
        for part in self._checkpoint.read_integer_rows(f"{tensor}_packed", packed_shape, "I32", rows):
            values = unpack(_to_bytes(part), scheme.bits)[:, : shape[1]]
            yield IntegerRows(values, scales[first : first + len(part)])
            first += len(part)

    def activation_scales(self, tensor: str) -> ActivationScales:
        """See `TrainedIntegers.activation_scales`."""
        del tensor
        return ActivationScales()

    def _scheme(self, tensor: str) -> PackedScheme | None:
        """How a matrix is packed; None where the checkpoint has it as floating point."""
        if f"{tensor}_packed" not in self._checkpoint:
            return None
        is_embedding = tensor in (EMBEDDING, PER_LAYER_EMBEDDING)
        scheme = self._quantization.scheme_of(tensor.removesuffix(".weight"), is_embedding=is_embedding)
        if scheme is None:
            raise CheckpointError(
                f"the checkpoint has the tensor {tensor}_packed, which config.json's quantization_config leaves out: "
                "the weights do not belong to this config."
            )
        return scheme

    def _check_shape(self, tensor: str, shape: tuple[int, int]) -> None:
        found = self._checkpoint.read_integers(f"{tensor}_shape", (2,), "I64").tolist()
        if found != list(shape):
            raise CheckpointError(
                f"the tensor {tensor}_shape says {found}, but config.json leads to {list(shape)}: "
                "the weights do not belong to this config."
            )


def _group_count(tensor: str, shape: tuple[int, int], scheme: PackedScheme) -> int:
    """Scales of one row."""
    if scheme.group_size is None:
        return 1
    if shape[1] % scheme.group_size:
        raise CheckpointError(
            f"the rows of {tensor} hold {shape[1]} values, which groups of {scheme.group_size} do not fill: "
            "the weights do not belong to this config."
        )
    return shape[1] // scheme.group_size


def _to_bytes(words: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
    """[rows, words] to [rows, bytes], the lowest first."""
    return np.ascontiguousarray(words, dtype="<i4").view(np.uint8)
