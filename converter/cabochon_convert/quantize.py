"""Block-wise rounding of weight matrices to 2, 4 or 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from cabochon.arrays import Float32Array
from cabochon_convert.compensation import round_compensated
from cabochon_convert.rounding import Grid, fit_grid, round_to_grid

Algorithm = Literal["nearest", "mse", "gptq", "as-trained"]
"""How integers are chosen: by the block's extremes; by the scale of least square error; the latter, and each column's
error is made up for by the columns to its right, weighted by how calibration inputs vary together; or they are the
checkpoint's own, see `trained_integers.py`."""

_CACHED_VALUES = 1 << 15
"""Values that are worked on at a time: what the search for scales keeps of them stays in a core's cache."""


@dataclass(frozen=True, slots=True)
class Precision:
    """How a weight matrix is to be stored."""

    bits: int
    """2, 4 or 8 for block-wise integers, 16 for the checkpoint's own floating point, 32 for float32."""
    block_size: int = 0
    """Consecutive inputs that share one scale; 0 for floating point."""
    symmetric: bool = True
    """Whether all blocks put zero on the same integer; otherwise each has a zero point of its own."""
    algorithm: Algorithm = "nearest"
    """Only integers are chosen in different ways."""
    scale_bits: int = 32
    """Of a scale: 32, or 16 for half precision."""
    positive_scales: bool = False
    """Whether all scales are above zero, as XNNPACK wants them; of 16 bits they are bfloat16 numbers then."""

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8, 16, 32):
            raise ValueError(f"expected 2, 4, 8, 16 or 32 bits, got {self.bits}")
        if self.algorithm not in get_args(Algorithm):
            raise ValueError(f"expected one of the algorithms {get_args(Algorithm)}, got {self.algorithm!r}")
        # MatMulNBits takes powers of two from 16.
        block = self.block_size
        if self.is_integer and (block < 16 or block & (block - 1)):
            raise ValueError(f"expected a block size of a power of two from 16, got {block}")
        if not self.is_integer and (block or not self.symmetric or self.algorithm != "nearest"):
            raise ValueError("floating point has no blocks, no zero points and nothing to choose")
        # Error compensation and integers of training need their scales as they are.
        if self.scale_bits != 32 and (self.scale_bits != 16 or self.algorithm not in ("nearest", "mse")):
            raise ValueError(f"expected scales of 32 bits, or of 16 where blocks are rounded alone: {self}")

    @property
    def is_integer(self) -> bool:
        """Whether it is block-wise integer storage."""
        return self.bits < 16


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """Integers, scales and zero points in the layout of onnxruntime's MatMulNBits; weight = (value - zero) * scale."""

    values: npt.NDArray[np.uint8]
    """[rows, blocks, block_size * bits / 8]; the first of the values that share a byte lies in its lowest bits."""
    scales: Float32Array
    """[rows, blocks]"""
    zero_points: npt.NDArray[np.uint8] | None
    """[rows, bytes for one value per block], packed as the values; None: 2 ** (bits - 1) everywhere."""


def quantize_matrix(weights: Float32Array, precision: Precision, spread: Float32Array | None = None) -> QuantizedMatrix:
    """Round a matrix [rows, columns] block by block; rows do not depend on each other.

    A last block that is not full is padded with zeros.

    Args:
        weights: float32 [rows, columns].
        precision: block-wise integers.
        spread: what `compensation.error_spread` made of the second moments of inputs; for the algorithm "gptq" only.

    Raises:
        ValueError: the algorithm needs second moments and there are none, or it is not one that rounds.
    """
    if precision.algorithm == "as-trained":
        raise ValueError("integers as trained are carried over, not rounded to")
    padding = -weights.shape[1] % precision.block_size
    if padding:
        weights = np.pad(weights, ((0, 0), (0, padding)))
    if precision.algorithm == "gptq":
        if spread is None:
            raise ValueError("the algorithm gptq needs the second moments of the matrix's inputs")
        values, grid = round_compensated(weights, spread, precision.bits, precision.block_size, precision.symmetric)
    else:
        values, grid = _round_independently(weights, precision)
    zero_points = None if precision.symmetric else pack(grid.zero_points.astype(np.uint8), precision.bits)
    return QuantizedMatrix(pack(values, precision.bits), grid.scales, zero_points)


def _round_independently(weights: Float32Array, precision: Precision) -> tuple[npt.NDArray[np.uint8], Grid]:
    """uint8 [rows, blocks, block_size] and its grid [rows, blocks]."""
    blocks = weights.reshape(len(weights), -1, precision.block_size)
    values = np.empty(blocks.shape, np.uint8)
    scales, zero_points = (np.empty(blocks.shape[:2], np.float32) for _ in range(2))
    count = max(1, _CACHED_VALUES // weights.shape[1])
    for first in range(0, len(blocks), count):
        some = slice(first, first + count)
        search, positive = precision.algorithm == "mse", precision.positive_scales
        grid = fit_grid(blocks[some], precision.bits, precision.symmetric, search, positive)
        if positive:
            grid = grid.with_positive_scales(precision.scale_bits)
        elif precision.scale_bits == 16:
            grid = grid.with_half_scales()
        values[some] = round_to_grid(blocks[some], grid, precision.bits)
        scales[some], zero_points[some] = grid.scales, grid.zero_points
    return values, Grid(scales, zero_points)


def pack(values: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Several values of the last axis into one byte, the first into the lowest bits; the last byte is filled up."""
    per_byte = 8 // bits
    if per_byte == 1:
        return values
    padding = -values.shape[-1] % per_byte
    if padding:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], padding), np.uint8)], axis=-1)
    packed = values[..., 0::per_byte].copy()
    for place in range(1, per_byte):
        packed |= values[..., place::per_byte] << (place * bits)
    return packed


def unpack(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """The opposite of `pack`; the filling of the last byte comes along."""
    parts = [(packed >> place) & ((1 << bits) - 1) for place in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(*packed.shape[:-1], -1)


def dequantize_matrix(matrix: QuantizedMatrix, columns: int, precision: Precision) -> Float32Array:
    """The weights [rows, columns] that a quantized matrix stands for."""
    values = unpack(matrix.values, precision.bits).astype(np.float32)
    if matrix.zero_points is None:
        zero_points = np.full(matrix.scales.shape, 1 << (precision.bits - 1), np.float32)
    else:
        zero_points = unpack(matrix.zero_points, precision.bits)[:, : matrix.scales.shape[1]].astype(np.float32)
    weights = (values - zero_points[..., None]) * matrix.scales[..., None]
    result: Float32Array = weights.reshape(len(values), -1)[:, :columns]
    return result
