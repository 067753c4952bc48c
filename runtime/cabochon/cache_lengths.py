"""Lengths of the runs and caches that LiteRT's graphs are made for.

A step costs what the whole cache of a layer costs, unless a sliding window bounds what it reads.
"""

from __future__ import annotations

from itertools import count, takewhile

PREFILL_LENGTH = 128
"""Longer ones are no faster on a CPU: 650 positions/s with 128 and with 512 on two cores, for E2B."""
SHORTEST_CACHE = 512
"""Positions for ten seconds of speech and its answer."""
GROWTH = 4
"""From one length to the next: every length makes loading 0.2 s longer for E2B, and converting a minute."""


def cache_lengths(context_length: int) -> tuple[int, ...]:
    """Lengths of the caches that a decoder can work with, the last of them the context's."""
    lengths = (SHORTEST_CACHE * GROWTH**n for n in count())
    return (*takewhile(lambda length: 2 * length <= context_length, lengths), context_length)
