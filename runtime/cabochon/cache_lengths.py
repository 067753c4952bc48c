"""Lengths of the runs and caches that LiteRT's graphs work with.

A step costs what the whole cache of a layer costs, unless a sliding window bounds what it reads. So caches begin short,
and their signatures are resized when they are full.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count, takewhile

PREFILL_LENGTH = 128
"""Longer ones are no faster on a CPU: 650 positions/s with 128 and with 512 on two cores, for E2B."""
SHORTEST_CACHE = 512
"""Positions for ten seconds of speech and its answer."""
GROWTH = 2
"""From one length to the next: resizing takes E2B 0.1 s, and a step of the last length is at most half in vain."""
_ALIGNMENT = 16
"""Rows that are read are a multiple, or kernels finish the last ones one by one."""
ANY_LENGTH = "_any_cache"
"""How names of signatures end whose caches may be resized."""


def window_rows(sliding_window: int, run_length: int) -> int:
    """Rows of a cache that a sliding layer reads for a run: what any of its positions can see."""
    return -(-(sliding_window + run_length - 1) // _ALIGNMENT) * _ALIGNMENT


def shortest_cache(sliding_windows: Iterable[int]) -> int:
    """No cache is shorter, because runs read so many rows of it. Args: sliding_windows: of all layers, 0 for none."""
    read = [window_rows(window, PREFILL_LENGTH) for window in sliding_windows if window]
    return max(SHORTEST_CACHE, *read, 0)


def cache_lengths(context_length: int, shortest: int) -> tuple[int, ...]:
    """Lengths that the caches of a decoder take one after another, the last of them the context's."""
    lengths = (shortest * GROWTH**n for n in count())
    return (*takewhile(lambda length: length < context_length, lengths), context_length)
