"""Matrices of a checkpoint as XNNPACK takes them: signed integers without zero points.

8 and 2 bits have one scale a row; 4 bits have one a block, or a row where blocks do not fill it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from cabochon.embedding_table import SIGN_BITS
from cabochon.manifest import AppliedPrecision
from cabochon_convert.checkpoint import Checkpoint
from cabochon_convert.flatbuffer_litert import MatrixPart
from cabochon_convert.matrices import LinearSettings, MatrixRows, quantized_parts
from cabochon_convert.quantize import Precision

BLOCK_SIZES = (256, 128, 64, 32)
"""That XNNPACK multiplies by: https://github.com/google/XNNPACK (qb4w), ai_edge_quantizer/default_policy.py."""


@dataclass(frozen=True, slots=True)
class CheckpointMatrix:
    """A matrix that is rounded while it is written."""

    checkpoint: Checkpoint
    settings: LinearSettings
    tensor: str
    rows: int
    columns: int

    @property
    def bits(self) -> int:
        """See `StoredMatrix.bits`."""
        return self._precision.bits

    @property
    def block_size(self) -> int:
        """See `StoredMatrix.block_size`."""
        return self._precision.block_size if self._precision.scale_bits == 16 else 0

    @property
    def applied(self) -> AppliedPrecision:
        """What the manifest says about it."""
        precision = self._precision
        return AppliedPrecision(
            tensor=self.tensor,
            bits=precision.bits,
            block_size=(self.block_size or self.columns) if precision.is_integer else 0,
            symmetric=True,
            scale_bits=precision.scale_bits if precision.is_integer else 0,
            algorithm=precision.algorithm,
        )

    def parts(self) -> Iterator[MatrixPart]:
        """See `StoredMatrix.parts`."""
        precision, shape = self._precision, (self.rows, self.columns)
        if not precision.is_integer:
            for part in self.checkpoint.read_rows(self.tensor, shape):
                yield MatrixPart(part, np.zeros((len(part), 0), np.float32))
            return
        row_bytes = self.columns * precision.bits // 8
        whole = MatrixRows.whole(self.tensor, *shape)
        for quantized in quantized_parts(self.checkpoint, self.settings, whole, precision):
            # A row of one block was filled up to a power of two.
            values = quantized.values.reshape(len(quantized.values), -1)[:, :row_bytes]
            yield MatrixPart(values ^ np.uint8(SIGN_BITS[precision.bits]), quantized.scales)

    @property
    def _precision(self) -> Precision:
        return fitting_precision(self.settings.precision(self.tensor, (self.rows, self.columns)), self.columns)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a matrix belongs in a graph."""

    tensor: str
    """Name in the checkpoint."""
    rows: int
    columns: int


def matrices_of(
    places: Iterable[Place], checkpoint: Checkpoint, settings: LinearSettings
) -> tuple[CheckpointMatrix, ...]:
    """What belongs into the places of a graph, in their order."""
    return tuple(CheckpointMatrix(checkpoint, settings, place.tensor, place.rows, place.columns) for place in places)


def fitting_precision(asked: Precision, columns: int) -> Precision:
    """The nearest that XNNPACK has to what a recipe asks for."""
    if not asked.is_integer:
        return Precision(32)
    # Rows that share a byte would be read wrongly.
    bits = next(bits for bits in (2, 4, 8) if bits >= asked.bits and columns * bits % 8 == 0)
    whole_row = max(16, 1 << (columns - 1).bit_length())
    blocks = [block for block in _fitting_blocks(columns) if block <= max(asked.block_size, BLOCK_SIZES[-1])]
    # Blocks are for 4 bits only.
    block = blocks[0] if blocks and bits == 4 else whole_row
    algorithm = "mse" if asked.algorithm == "gptq" else asked.algorithm
    scale_bits = 16 if bits == 4 and block in blocks else 32
    return Precision(bits, block, algorithm=algorithm, scale_bits=scale_bits, positive_scales=True)


def _fitting_blocks(columns: int) -> list[int]:
    return [block for block in BLOCK_SIZES if columns % block == 0]
