"""How many threads compute, and whether each of them stays on one processor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cabochon.machine import find_processor_quota, processors_worth, usable_processors

TASKS = Path("/proc/self/task")


def choose_thread_count() -> int:
    """One for each processor that this process may use: no more than its control group gives it time for."""
    return processors_worth(usable_processors(), find_processor_quota())


@contextmanager
def placed_threads(*, pinned: bool) -> Iterator[None]:
    """Threads that an engine starts meanwhile stay on one processor each, if they are to be pinned.

    The thread that asks computes, too, and goes where it likes; the first processor is left to it. Engines start their
    threads while they load a graph. Only on Linux.
    """
    if not pinned or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = _threads()
    yield
    processors = sorted(os.sched_getaffinity(0))
    for index, thread in enumerate(sorted(_threads() - before), start=1):
        try:
            os.sched_setaffinity(thread, {processors[index % len(processors)]})
        except ProcessLookupError:  # it ended
            continue


def _threads() -> set[int]:
    return {int(path.name) for path in TASKS.iterdir()}
