"""Lengths of runs and caches that graphs of LiteRT are made for: a step costs what its whole cache costs."""

from __future__ import annotations

PREFILL_LENGTH = 128
"""Longer ones are no faster on a CPU: 650 positions/s with 128 and with 512 on two cores, for E2B."""
SHORT_CACHE = 1024
"""Positions for half a minute of speech and its answer: for E2B, a step is half as long again with 4096."""


def cache_lengths(context_length: int) -> tuple[int, ...]:
    """Lengths of the caches that a decoder can work with."""
    return (SHORT_CACHE, context_length) if context_length >= 2 * SHORT_CACHE else (context_length,)
