"""Grids of evenly spaced values that blocks of weights are rounded to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cabochon.arrays import Float32Array

_SYMMETRIC_CANDIDATES = tuple(np.linspace(0.85, 1.3, 10))
"""Steps from zero to the extreme, relative to the integers on its side; above 1 it is cut off."""
_LONG_CANDIDATES = tuple(np.geomspace(0.85, 4, 14))
"""The same for blocks of whole rows, whose extreme is far out: half the square error of 2 bits, two thirds of 4."""
LONG_BLOCK = 512
_ASYMMETRIC_CANDIDATES = tuple(np.linspace(0.7, 1.05, 8))
"""Width of the grid, relative to the range of the block."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Integers stand for (integer - zero_point) * scale; block by block."""

    scales: Float32Array
    """[rows, blocks]; negative where the extreme is positive, because there is one more integer below zero."""
    zero_points: Float32Array
    """[rows, blocks], whole numbers"""

    def with_half_scales(self) -> Grid:
        """Scales that half precision can hold, the nearest ones.

        Raises:
            OverflowError: a scale is too large for half precision.
        """
        if np.abs(self.scales).max(initial=0) > np.finfo(np.float16).max:
            raise OverflowError("a scale is too large for half precision")
        return Grid(self.scales.astype(np.float16).astype(np.float32), self.zero_points)

    def with_positive_scales(self, scale_bits: int) -> Grid:
        """The same grid with no scale of zero; of 16 bits, scales are bfloat16 numbers that half precision holds.

        Raises:
            OverflowError: a scale is too large for half precision.
        """
        scales = np.where(self.scales >= _SMALLEST_NORMAL, self.scales, np.float32(1))
        if scale_bits == 16:
            # Adding half of what is cut off rounds to the nearest, as ml_dtypes does but for ties.
            bits = (scales.view(np.uint32) + np.uint32(0x8000)) & np.uint32(0xFFFF0000)
            scales = np.maximum(bits.view(np.float32), _SMALLEST_HALF)
            if scales.max(initial=0) > np.finfo(np.float16).max:
                raise OverflowError("a scale is too large for half precision")
        return Grid(scales.astype(np.float32), self.zero_points)


_SMALLEST_NORMAL = np.finfo(np.float32).smallest_normal
"""What is closer to zero has no inverse, and XNNPACK refuses it as a scale: it counts as zero."""
_SMALLEST_HALF = np.float32(2.0**-17)
"""From here on, half precision holds all eight bits of a bfloat16 number."""


def fit_grid(blocks: Float32Array, bits: int, symmetric: bool, search: bool, positive: bool = False) -> Grid:
    """The grid of each block [rows, blocks, block size]: from its extremes, or by search the one of least square error.

    The search tries some scales; to the integers that one gives, the best scale is known in closed form (as in
    llama.cpp's make_qx_quants), and weights are rounded anew with that.

    Args:
        positive: symmetric grids have no scale below zero, which costs a little: integers reach one step less far up
            than down.
    """
    if symmetric:
        grid = _positive_grid(blocks, bits) if positive else _symmetric_grid(blocks, bits)
        return _search(blocks, grid, bits) if search else grid
    grid = _asymmetric_grid(blocks, bits, 1.0)
    if not search:
        return grid
    best, least = grid, _square_errors(blocks, grid, bits)
    for width in _ASYMMETRIC_CANDIDATES:
        candidate = _refit(blocks, _asymmetric_grid(blocks, bits, width), bits)
        best, least = _better(best, least, candidate, _square_errors(blocks, candidate, bits))
    return best


def round_to_grid(blocks: Float32Array, grid: Grid, bits: int) -> npt.NDArray[np.uint8]:
    """The integers [rows, blocks, block size]."""
    return _integers(blocks, grid, bits).astype(np.uint8)


def _integers(blocks: Float32Array, grid: Grid, bits: int) -> Float32Array:
    """Whole numbers as float32."""
    inverse = np.divide(1.0, grid.scales, out=np.zeros_like(grid.scales), where=np.abs(grid.scales) >= _SMALLEST_NORMAL)
    scaled = blocks * inverse[..., None]
    np.rint(scaled, out=scaled)
    scaled += grid.zero_points[..., None]
    return np.clip(scaled, 0, (1 << bits) - 1, out=scaled)


def _symmetric_grid(blocks: Float32Array, bits: int) -> Grid:
    """The value of largest magnitude is mapped exactly onto the most negative integer."""
    half = 1 << (bits - 1)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1, keepdims=True), axis=-1)[..., 0]
    scales = (extreme / np.float32(-half)).astype(np.float32)
    return Grid(scales, np.full(scales.shape, half, np.float32))


def _positive_grid(blocks: Float32Array, bits: int) -> Grid:
    """The smallest scale above zero that reaches the largest and the smallest value."""
    half = 1 << (bits - 1)
    scales = np.maximum(blocks.max(axis=-1) / np.float32(half - 1), blocks.min(axis=-1) / np.float32(-half))
    return Grid(scales.astype(np.float32), np.full(scales.shape, half, np.float32))


def _asymmetric_grid(blocks: Float32Array, bits: int, width: float) -> Grid:
    """From the smallest to the largest value, with zero among the integers."""
    low = np.minimum(blocks.min(axis=-1), 0) * np.float32(width)
    high = np.maximum(blocks.max(axis=-1), 0) * np.float32(width)
    scales = ((high - low) / np.float32((1 << bits) - 1)).astype(np.float32)
    zero_points = np.divide(-low, scales, out=np.zeros_like(scales), where=scales != 0)
    return Grid(scales, np.clip(np.rint(zero_points), 0, (1 << bits) - 1).astype(np.float32))


def _search(blocks: Float32Array, grid: Grid, bits: int) -> Grid:
    best, least = grid, _square_errors(blocks, grid, bits)
    for steps in _LONG_CANDIDATES if blocks.shape[-1] >= LONG_BLOCK else _SYMMETRIC_CANDIDATES:
        candidate = _refit(blocks, Grid(grid.scales / np.float32(steps), grid.zero_points), bits)
        best, least = _better(best, least, candidate, _square_errors(blocks, candidate, bits))
    return best


def _refit(blocks: Float32Array, grid: Grid, bits: int) -> Grid:
    """The scale of least square error for the integers that the grid gives."""
    integers = _integers(blocks, grid, bits)
    integers -= grid.zero_points[..., None]
    products = np.einsum("rbi,rbi->rb", integers, blocks)
    squares = np.einsum("rbi,rbi->rb", integers, integers)
    scales = np.divide(products, squares, out=grid.scales.copy(), where=squares > 0)
    return Grid(scales, grid.zero_points)


def _square_errors(blocks: Float32Array, grid: Grid, bits: int) -> Float32Array:
    """[rows, blocks]"""
    rounded = _integers(blocks, grid, bits)
    rounded -= grid.zero_points[..., None]
    rounded *= grid.scales[..., None]
    rounded -= blocks
    errors: Float32Array = np.einsum("rbi,rbi->rb", rounded, rounded)
    return errors


def _better(best: Grid, least: Float32Array, candidate: Grid, errors: Float32Array) -> tuple[Grid, Float32Array]:
    wins = errors < least
    scales = np.where(wins, candidate.scales, best.scales)
    zero_points = np.where(wins, candidate.zero_points, best.zero_points)
    return Grid(scales, zero_points), np.where(wins, errors, least)
