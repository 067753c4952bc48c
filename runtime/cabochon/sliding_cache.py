"""Caches of sliding-window layers: they hold the newest positions only, in order, from the front of their buffers."""

from __future__ import annotations

from collections.abc import Sequence

from cabochon.arrays import CacheArray
from cabochon.backend import LONGEST_RUN


def sliding_capacity(window: int, context_length: int) -> int:
    """Rows that a sliding cache needs: a window and the longest run, or the whole context where that is less."""
    return min(context_length, window + LONGEST_RUN)


class SlidingCaches:
    """The buffers of all sliding layers, and which positions they hold.

    Args:
        buffers: keys and values, float32 [1, heads, capacity, head size] each.
        window: positions that are attended to, the newest included.
        capacity: rows of every buffer, from `sliding_capacity`.
    """

    def __init__(self, buffers: Sequence[CacheArray], window: int, capacity: int) -> None:
        self._buffers = buffers
        self._window = window
        self._capacity = capacity
        self._first = 0
        self._end = 0

    @property
    def earliest_position(self) -> int:
        """The first position whose window is still held whole."""
        return self._first + self._window - 1 if self._first else 0

    def held_before(self, end: int) -> int:
        """How many of the positions before one are held."""
        return end - self._first

    def make_room(self, position: int, count: int) -> range:
        """Forget what lies behind a position and what no later window needs.

        Args:
            position: of the run's first row: 0, or from `earliest_position` to the end of what was run.
            count: positions of the run, at most `LONGEST_RUN`.

        Returns:
            The rows that the run can see, its own included; all rows before them are held, too.
        """
        if position == 0:
            self._first = self._end = 0
        if not self.earliest_position <= position <= self._end:
            raise ValueError(
                f"a run at position {position} is impossible: the caches go back to {self.earliest_position} "
                f"and end at {self._end}"
            )
        rows = position - self._first
        if rows + count > self._capacity:
            rows = self._move(rows, count)
        self._end = position + count
        first = max(0, rows - (self._window - 1))
        return range(first, rows + count)

    def rows_before(self, end: int, count: int) -> slice:
        """The rows of the last positions before one from which on a run could start."""
        if not self.earliest_position <= end <= self._end:
            raise ValueError(f"position {end} is not from {self.earliest_position} to {self._end}")
        return slice(end - self._first - count, end - self._first)

    def refill(self, end: int, count: int) -> slice:
        """Hold that many positions before one and no others; returns the rows to write them to."""
        self._first, self._end = end - count, end
        return slice(0, count)

    def _move(self, rows: int, count: int) -> int:
        """Move the newest rows to the front; more than a window where there is room, so that runs can go back."""
        spare = (self._capacity - self._window) // 2  # for runs to come: moving is rare when they are short
        kept = min(rows, max(self._window - 1, self._capacity - count - spare))
        for buffer in self._buffers:
            buffer[:, :, :kept] = buffer[:, :, rows - kept : rows]
        self._first += rows - kept
        return kept
