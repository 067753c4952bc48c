"""Weight matrices whose integers and scales were found in training: they are carried over, not rounded again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cabochon.arrays import Float32Array
from cabochon_convert.checkpoint import CheckpointError
from cabochon_convert.quantize import Precision, QuantizedMatrix, pack

# The engine takes blocks of up to 256. Of 2 bits only those up to 128 have a fast kernel: beyond, onnxruntime 1.31
# takes 35 ms instead of 0.15 for a matrix of 1536 x 6144.
LARGEST_BLOCK = {2: 128, 4: 256, 8: 256}
SMALLEST_BLOCK = 16


@dataclass(frozen=True, slots=True)
class IntegerRows:
    """Some rows of a matrix: weight = (value - 2 ** (bits - 1)) * scale of its group."""

    values: npt.NDArray[np.uint8]
    """[rows, columns]"""
    scales: Float32Array
    """[rows, groups]; a group is a run of columns, all of equal length."""


@dataclass(frozen=True, slots=True)
class ActivationScales:
    """What a linear layer's input and output are rounded to, in training and so in the graph: multiples of a scale."""

    input: float = 0.0
    """0: not rounded."""
    output: float = 0.0


class TrainedIntegers(Protocol):
    """The matrices of one checkpoint that are integers."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that the user should read."""

    def precision(self, tensor: str, shape: tuple[int, int]) -> Precision | None:
        """How a weight matrix is to be stored so that it stays what it is; None where it is floating point."""

    def rows(self, tensor: str, shape: tuple[int, int], rows: range) -> Iterator[IntegerRows]:
        """Some rows of a matrix of integers, a few megabytes at a time."""

    def activation_scales(self, tensor: str) -> ActivationScales:
        """Of the linear layer with this weight matrix; of any other, that nothing is rounded."""


def trained_precision(tensor: str, bits: int, columns: int, group_count: int) -> Precision:
    """Blocks as large as the engine takes them, of which each lies in one group of columns."""
    group = columns // group_count
    if columns % group_count or (group_count > 1 and group % SMALLEST_BLOCK):
        raise CheckpointError(
            f"the rows of {tensor} have {group_count} scales for {columns} values, "
            f"but groups have to be multiples of {SMALLEST_BLOCK}: convert an unquantized checkpoint."
        )
    # The largest power of two that divides the group; the last block of an odd row is filled up.
    block = max(SMALLEST_BLOCK, min(group & -group, LARGEST_BLOCK[bits]))
    return Precision(bits, block, algorithm="as-trained")


def to_blocks(part: IntegerRows, precision: Precision) -> QuantizedMatrix:
    """The same integers in the engine's layout; blocks of one group repeat its scale."""
    rows, columns = part.values.shape
    blocks = -(-columns // precision.block_size)
    padding = blocks * precision.block_size - columns
    values = part.values
    if padding:
        zero = 1 << (precision.bits - 1)
        values = np.pad(values, ((0, 0), (0, padding)), constant_values=zero)
    scales = np.repeat(part.scales, blocks // part.scales.shape[1], axis=1)
    packed = pack(values.reshape(rows, blocks, precision.block_size), precision.bits)
    return QuantizedMatrix(packed, scales, None)


def hold_the_same(integers: TrainedIntegers, first: str, second: str, shape: tuple[int, int]) -> bool:
    """Whether two matrices are one: a table and an output matrix that need to be stored once only."""
    precision = integers.precision(first, shape)
    if precision is None or integers.precision(second, shape) != precision:
        return False
    every_row = range(shape[0])
    pairs = zip(integers.rows(first, shape, every_row), integers.rows(second, shape, every_row), strict=True)
    return all(
        np.array_equal(one.values, other.values) and np.array_equal(one.scales, other.scales) for one, other in pairs
    )
