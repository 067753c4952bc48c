"""Rounding that makes up for itself: GPTQ (Frantar et al. 2022, arXiv:2210.17323), with a grid for every block."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cabochon.arrays import Float32Array
from cabochon_convert.rounding import Grid, fit_grid

DAMPING = 0.01
"""Share of the mean diagonal that is added to it, as in the paper: inputs that hardly vary must not divide by zero."""


def round_compensated(
    weights: Float32Array, spread: Float32Array, bits: int, block_size: int, symmetric: bool
) -> tuple[npt.NDArray[np.uint8], Grid]:
    """Integers [rows, blocks, block_size] and their grid [rows, blocks].

    Columns are rounded from left to right; the error of each is spread over those not yet rounded so that, for inputs
    with these second moments, the products change least.

    Args:
        weights: [rows, columns], columns a multiple of the block size.
        spread: [columns, columns], from `error_spread`.
        bits: of the integers.
        block_size: consecutive columns that share one scale.
        symmetric: whether the zero point is the same everywhere.
    """
    rows, columns = weights.shape
    remaining = weights.astype(np.float32, copy=True)
    values = np.empty((rows, columns // block_size, block_size), np.uint8)
    scales, zero_points = (np.empty((rows, columns // block_size), np.float32) for _ in range(2))
    for block in range(columns // block_size):
        begin, end = block * block_size, (block + 1) * block_size
        grid = fit_grid(remaining[:, None, begin:end], bits, symmetric, search=True)
        scales[:, block], zero_points[:, block] = grid.scales[:, 0], grid.zero_points[:, 0]
        errors = _round_block(remaining[:, begin:end], spread[begin:end, begin:end], grid, bits, values[:, block])
        remaining[:, end:] -= errors @ spread[begin:end, end:]
    return values, Grid(scales, zero_points)


def _round_block(
    weights: Float32Array, spread: Float32Array, grid: Grid, bits: int, values: npt.NDArray[np.uint8]
) -> Float32Array:
    """Fills values [rows, block size] and gives the errors, each over its column's diagonal; changes the weights."""
    scale, zero_point = grid.scales[:, 0], grid.zero_points[:, 0]
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale != 0)
    errors = np.empty_like(weights)
    for column in range(weights.shape[1]):
        integers = np.clip(np.rint(weights[:, column] * inverse) + zero_point, 0, (1 << bits) - 1)
        values[:, column] = integers
        rounded = (integers - zero_point) * scale
        errors[:, column] = (weights[:, column] - rounded) / spread[column, column]
        weights[:, column + 1 :] -= errors[:, column, None] * spread[column, column + 1 :]
    return errors


def error_spread(second_moments: Float32Array, block_size: int) -> Float32Array:
    """How a column's error is spread over those to its right: made once, however many rows are rounded by it.

    The upper Cholesky factor of the damped matrix's inverse. Inputs that are always zero count as independent, and so
    do those that fill up the last block.

    Args:
        second_moments: [inputs, inputs], mean of input times input transposed.
        block_size: consecutive columns that share one scale.
    """
    moments = np.pad(second_moments.astype(np.float64), (0, -len(second_moments) % block_size))
    diagonal = np.einsum("ii->i", moments)  # a view: writes through
    dead = diagonal <= 0
    diagonal[dead] = 1.0
    diagonal += DAMPING * diagonal.mean()
    lower = np.linalg.cholesky(np.linalg.inv(moments))
    return np.ascontiguousarray(lower.T, np.float32)
