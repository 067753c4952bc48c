"""Refusing to load a package that this machine has no memory for, before the system begins to kill processes.

Control groups that would do it are off by default on a Raspberry Pi.
"""

from __future__ import annotations

import os

from cabochon.engines import ENGINES
from cabochon.errors import RequestError
from cabochon.machine import Memory, MemoryLimit, find_memory, find_memory_limit, usable_memory
from cabochon.manifest import Manifest
from cabochon.memory_cost import MemoryCost, compute_memory_cost

ANYWAY_VARIABLE = "CABOCHON_LOAD_ANYWAY"
"""Set to anything in the environment, it loads whatever the arithmetic says."""
TOLERANCE = 0.9
"""Of what was computed, up to 6 % more than measured (docs/running.md): only what surely does not fit is refused."""


def require_memory(manifest: Manifest, engine: str, context_length: int) -> None:
    """Refuse a package that cannot fit.

    Raises:
        RequestError: what it needs for text, but for mapped weights, is more than memory and swap have left; or the
            context length is not to be had.
    """
    if engine not in ENGINES or os.environ.get(ANYWAY_VARIABLE):
        return
    cost = compute_memory_cost(manifest, engine, context_length)
    refuse_unless_it_fits(cost, find_memory(), find_memory_limit())


def refuse_unless_it_fits(cost: MemoryCost, memory: Memory, limit: MemoryLimit | None) -> None:
    """See `require_memory`; nothing is refused where the machine does not say what it has."""
    room = usable_memory(memory, limit)
    if room is None:
        return
    # Within a limit, swap has a limit of its own, so that it does not count.
    swap = 0 if limit is not None and limit.limit <= room else memory.swap_free or 0
    needed = cost.text - cost.mapped_for_text
    if needed * TOLERANCE <= room + swap:
        return
    parts = cost.parts
    decoder = parts.decoder_weights + parts.drafter_weights + parts.drafter_activations
    sums = (
        ("interpreter, engine, tokenizer", parts.runtime),
        ("decoder and drafter", decoder - cost.mapped_for_text),
        (f"caches of {cost.context_length} positions", parts.caches), ("activations", parts.activations),
        ("whole prompt", parts.prompt),
    )  # fmt: skip
    arithmetic = " + ".join(f"{size / 1e9:.2f} GB {name}" for name, size in sums if size > 0)
    raise RequestError(
        f"the package needs {needed / 1e9:.2f} GB ({arithmetic}, computed) and this machine has {room / 1e9:.2f} GB of "
        f"memory and {swap / 1e9:.2f} GB of swap left: ask for a shorter --context-length, close other programs, "
        f"convert with a smaller recipe, or set {ANYWAY_VARIABLE}=1 to try."
    )
