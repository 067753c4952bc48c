"""What sliding caches remember: the buffers hold the numbers of positions instead of keys and values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cabochon.backend import LONGEST_RUN
from cabochon.sliding_cache import SlidingCaches, sliding_capacity

CONTEXT = 20_000


class NumberedCaches:
    """Caches as an engine uses them."""

    def __init__(self, window: int) -> None:
        self.window = window
        capacity = sliding_capacity(window, CONTEXT)
        self.buffers = [np.full((1, 2, capacity, 1), -1, np.float32) for _ in range(2)]
        self.caches = SlidingCaches(self.buffers, window, capacity)

    def run(self, position: int, count: int) -> int:
        """Run, look at what every position of the run attends to, and return the number of rows held."""
        visible = self.caches.make_room(position, count)
        assert len(visible) == min(position + count, self.window - 1 + count)
        rows = visible.stop
        for buffer in self.buffers:
            buffer[0, :, rows - count : rows, 0] = np.arange(position, position + count)
            for place in (position, position + count - 1):
                last = rows - count + place - position
                needed = min(self.window, place + 1)
                seen = buffer[0, :, last + 1 - needed : last + 1, 0]
                assert (seen == np.arange(place + 1 - needed, place + 1)).all()
        return rows


@given(
    st.integers(1, 700), st.lists(st.integers(1, LONGEST_RUN), max_size=12), st.lists(st.integers(0, 800), max_size=4)
)
def test_every_run_finds_the_window_before_it(window: int, counts: list[int], ways_back: list[int]) -> None:
    numbered = NumberedCaches(window)
    position = 0
    for count in counts:
        numbered.run(position, count)
        position += count
    for way_back in ways_back:
        position = max(numbered.caches.earliest_position, position - way_back)
        numbered.run(position, 3)
        position += 3
    numbered.run(0, 5)
    assert numbered.caches.earliest_position == 0


@pytest.mark.parametrize("window", [1, 24, 512])
def test_single_steps_can_be_taken_back_and_rarely_move_rows(window: int) -> None:
    numbered = NumberedCaches(window)
    moves, previous = 0, 0
    for position in range(4000):
        rows = numbered.run(position, 1)
        moves += rows < previous
        previous = rows
        assert position + 1 - numbered.caches.earliest_position >= min(position, 200)
    assert moves <= 4000 / 200


def test_a_context_no_longer_than_the_buffers_is_never_forgotten() -> None:
    assert sliding_capacity(512, 1000) == 1000
    caches = SlidingCaches([np.zeros((1, 1, 1000, 1), np.float32)], 512, 1000)
    for position in range(0, 1000, 250):
        caches.make_room(position, 250)
    assert caches.earliest_position == 0


def test_what_was_forgotten_or_never_run_is_refused() -> None:
    numbered = NumberedCaches(24)
    for position in range(0, 3 * LONGEST_RUN, LONGEST_RUN):
        numbered.run(position, LONGEST_RUN)
    with pytest.raises(ValueError, match="go back to"):
        numbered.run(numbered.caches.earliest_position - 1, 1)
    with pytest.raises(ValueError, match="end at"):
        numbered.run(3 * LONGEST_RUN + 1, 1)
