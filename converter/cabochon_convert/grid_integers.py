"""Integers behind floating-point weights: quantization-aware training may leave products of integers and scales.

Such a checkpoint (`-qat-q4_0-unquantized`) looks like any other, but each block of 32 consecutive inputs holds at most
16 values: the multiples from -8 to 7 of one step, rounded to bfloat16. That is what GGML's Q4_0 stands for
(`quantize_row_q4_0_ref` in ggml-quants.c): a step in half precision, which may be negative. A whole range of steps is
rounded to the very same values; of it the middle is taken, in half precision where that lies in the range too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cabochon.arrays import Float32Array
from cabochon_convert.checkpoint import BITS, Checkpoint, CheckpointError, TensorRecord, open_checkpoint
from cabochon_convert.progress import Progress
from cabochon_convert.quantize import Precision
from cabochon_convert.trained_integers import ActivationScales, IntegerRows, trained_precision

GRID_BITS = 4
GRID_BLOCK = 32
_HALF = 1 << (GRID_BITS - 1)
# Which multiple the value of largest magnitude may be: in Q4_0 always the first, and the rest for other training.
_EXTREMES = (-8, 7, 6, 5, 4, 3, 2, 1)
_SAMPLED_ROWS = 16
# What is computed of them stays in a core's cache: three times as fast as thirty times as many.
_BLOCKS_AT_ONCE = 1 << 10


@dataclass(frozen=True, slots=True)
class RecoveredBlocks:
    """Blocks of weights as integers: weight = (value - 8) * step, rounded to bfloat16."""

    values: npt.NDArray[np.uint8]
    """[blocks, 32]"""
    steps: Float32Array
    """[blocks]; 0 for a block of zeros."""
    found: npt.NDArray[np.bool_]
    """[blocks]; where a block lies on no grid, its values and step mean nothing."""


class GridIntegers:
    """See `TrainedIntegers`; `find_grids` makes it."""

    def __init__(self, checkpoint: Checkpoint, on_grid: frozenset[str], partly_on_grid: frozenset[str]) -> None:
        self._checkpoint = checkpoint
        self._on_grid = on_grid
        self._partly_on_grid = partly_on_grid

    @property
    def notes(self) -> tuple[str, ...]:
        """See `TrainedIntegers.notes`."""
        if not self._partly_on_grid:
            return ()
        example = min(self._partly_on_grid)
        return (
            f"{len(self._partly_on_grid)} weight matrices ({example}, …) lie on a grid of 4 bits in most of their "
            "blocks, but not in all, and count as floating point.",
        )

    def precision(self, tensor: str, shape: tuple[int, int]) -> Precision | None:
        """See `TrainedIntegers.precision`."""
        if tensor not in self._on_grid:
            return None
        return trained_precision(tensor, GRID_BITS, shape[1], shape[1] // GRID_BLOCK)

    def rows(self, tensor: str, shape: tuple[int, int], rows: range) -> Iterator[IntegerRows]:
        """See `TrainedIntegers.rows`."""
        for part in self._checkpoint.read_rows(tensor, shape, rows):
            blocks = recover_blocks(part.reshape(-1, GRID_BLOCK))
            if not blocks.found.all():
                raise CheckpointError(f"the tensor {tensor} has changed while it was converted: convert it again.")
            yield IntegerRows(blocks.values.reshape(part.shape), blocks.steps.reshape(len(part), -1))

    def activation_scales(self, tensor: str) -> ActivationScales:
        """See `TrainedIntegers.activation_scales`."""
        del tensor
        return ActivationScales()


def find_grids(checkpoint: Checkpoint, progress: Progress) -> GridIntegers | None:
    """The matrices of which every block lies on a grid and which no adapter changes; None where there are none.

    Matrices beside any grid are told by a few of their rows; the others are read as a whole.
    """
    # Opened anew: what is looked at here is not yet in use.
    looked_at = open_checkpoint(checkpoint.folder, progress.advance)
    # What an adapter moves from its grid is floating point.
    records = [looked_at.record(name) for name in looked_at.names if name not in checkpoint.changed_names]
    matrices = [record for record in records if len(record.shape) == 2 and record.storage in BITS]
    progress.start("looking for integers", sum(record.size for record in matrices), "B")
    extents = {record.name: _extent_of_grid(looked_at, record) for record in matrices}
    on_grid, partly = (
        frozenset(name for name, extent in extents.items() if extent == wanted) for wanted in ("all", "most")
    )
    return GridIntegers(checkpoint, on_grid, partly) if on_grid else None


def _extent_of_grid(checkpoint: Checkpoint, record: TensorRecord) -> Literal["all", "most", "little"]:
    """How many of a matrix's blocks lie on a grid, not counting zeros."""
    rows, columns = record.shape
    if not rows or not columns or columns % GRID_BLOCK:
        return "little"
    shape = (rows, columns)
    sampled = np.unique(np.linspace(0, rows - 1, _SAMPLED_ROWS, dtype=np.int64)).tolist()
    blocks = np.concatenate(
        [part for row in sampled for part in checkpoint.read_rows(record.name, shape, range(row, row + 1))]
    ).reshape(-1, GRID_BLOCK)
    blocks = blocks[blocks.any(axis=1)]  # zeros lie on every grid
    share = float(recover_blocks(blocks).found.mean()) if len(blocks) else 1.0
    if share < 1:
        return "most" if share >= 0.5 else "little"
    only_zeros = True
    for part in checkpoint.read_rows(record.name, shape):
        if not recover_blocks(part.reshape(-1, GRID_BLOCK)).found.all():
            return "most"
        only_zeros = only_zeros and not part.any()
    return "little" if only_zeros else "all"


def recover_blocks(blocks: Float32Array) -> RecoveredBlocks:
    """Integers and steps of weights [blocks, 32], exactly as they were rounded to bfloat16."""
    values = np.empty(blocks.shape, np.uint8)
    steps, found = np.empty(len(blocks), np.float32), np.empty(len(blocks), np.bool_)
    for first in range(0, len(blocks), _BLOCKS_AT_ONCE):
        some = slice(first, first + _BLOCKS_AT_ONCE)
        # Numpy takes extremes of columns many times faster than those of short rows.
        columns = np.ascontiguousarray(blocks[some].T)
        integers, steps[some], found[some] = _fit(columns, _EXTREMES[0])
        for extreme in _EXTREMES[1:]:
            left = np.flatnonzero(~found[some])
            if not len(left):
                break
            integers[:, left], steps[first + left], found[first + left] = _fit(columns[:, left], extreme)
        values[some] = (integers + _HALF).astype(np.uint8).T
    return RecoveredBlocks(values, steps, found)


def _fit(columns: Float32Array, extreme: int) -> tuple[Float32Array, Float32Array, npt.NDArray[np.bool_]]:
    """Integers, steps and whether they give the very same weights, of which the largest is this multiple.

    Args:
        columns: weights [32, blocks].
        extreme: the integer for a block's value of largest magnitude.
    """
    highest, lowest = columns.max(axis=0), columns.min(axis=0)
    largest = np.where(highest > -lowest, highest, lowest)
    is_zero = largest == 0
    factors: Float32Array = np.divide(extreme, np.where(is_zero, 1, largest), dtype=np.float32)
    with np.errstate(divide="ignore", over="ignore", under="ignore", invalid="ignore"):
        integers = columns * factors
        np.rint(integers, out=integers)
        np.minimum(integers, _HALF - 1, out=integers)
        least, most = _step_range(columns, np.abs(integers))
        middle = np.copysign((least + most) / 2, factors)
        middle[is_zero] = 0
        steps = middle.astype(np.float16).astype(np.float32)
        found = _gives(integers, steps, columns)
        other = np.flatnonzero(~found)
        steps[other] = middle[other]
        found[other] = _gives(integers[:, other], steps[other], columns[:, other])
    # Where no step fits, there may be no number either.
    integers[:, ~found] = 0
    return integers, steps, found


def _step_range(columns: Float32Array, multiples: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Between which steps all multiples [32, blocks] are rounded to these bfloat16 magnitudes; changes `multiples`.

    float32 has the same exponents and 16 more bits, so that half of the distance to the next bfloat16, upwards and
    downwards, is the bit below its last.
    """
    magnitudes = columns.view(np.uint32) & np.uint32(0x7FFFFFFF)
    above = (magnitudes + np.uint32(0x8000)).view(np.float32)
    most = np.divide(above, multiples, out=above).min(axis=0)  # zeros allow any step
    np.maximum(multiples, 1, out=multiples)
    below = (magnitudes - np.minimum(magnitudes, np.uint32(0x8000))).view(np.float32)
    least = np.divide(below, multiples, out=below).max(axis=0)
    return least, most


def _gives(integers: Float32Array, steps: Float32Array, columns: Float32Array) -> npt.NDArray[np.bool_]:
    """Whether a block's products, rounded to the nearest bfloat16 with ties to even, are its weights [32, blocks]."""
    bits = (integers * steps).view(np.uint32)
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded &= np.uint32(0xFFFF0000)
    return np.asarray((rounded.view(np.float32) == columns).all(axis=0))
