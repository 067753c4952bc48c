"""What drafts cost on this machine: runs of one to six positions against one, and the drafter itself.

    python benchmarks/drafts.py PACKAGE [POSITION...] [--engine litert]

Prints how many drafts have to be right for answers to come faster. On a busy machine, as root, say `--alone`: no other
process interrupts what is timed.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from cabochon.backend import EngineSettings
from cabochon.embedder import open_embedder
from cabochon.engines import choose_engine, open_session
from cabochon.package import open_package

LONGEST, REPETITIONS = 5, 12


@contextmanager
def uninterrupted(wanted: bool) -> Iterator[None]:
    """All threads of this process at real-time priority."""
    if not wanted:
        yield
        return
    threads = [int(path.name) for path in Path("/proc/self/task").iterdir()]
    _set_policy(threads, os.SCHED_FIFO, 1)
    try:
        yield
    finally:
        _set_policy(threads, os.SCHED_OTHER, 0)


def _set_policy(threads: list[int], policy: int, priority: int) -> None:
    for thread in threads:
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setscheduler(thread, policy, os.sched_param(priority))


def typical_seconds(work: Callable[[], object], alone: bool) -> float:
    """Median of some repetitions, after one that allocates."""
    work()
    seconds = []
    for _ in range(REPETITIONS):
        with uninterrupted(alone):
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
    return median(seconds)


def break_even(run: float, guess: float, plain: float, count: int) -> float:
    """The share of right drafts at which `count` of them answer as fast as none."""
    low, high = 0.0, 1.0
    if plain * (count + 1) < run + count * guess:
        return float("nan")
    for _ in range(50):
        share = (low + high) / 2
        tokens = sum(share**power for power in range(count + 1))
        low, high = (share, high) if tokens * plain < run + count * guess else (low, share)
    return high


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package")
    parser.add_argument("positions", nargs="*", type=int, default=[128, 1024])
    parser.add_argument("--engine", default="")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--alone", action="store_true")
    arguments = parser.parse_args()
    package = open_package(arguments.package)
    engine = choose_engine(package, arguments.engine)
    session = open_session(package, engine, EngineSettings(arguments.threads))
    embedder = open_embedder(package, engine)
    generator = np.random.default_rng(0)
    for position in arguments.positions:
        for start in range(0, position, 256):
            tokens = generator.integers(300, 3000, min(256, position - start)).tolist()
            step = embedder.embed(tokens)
            session.decoder.run(step.inputs_embeds, step.per_layer_inputs, start)
        guess = 0.0
        if session.drafter is not None:
            drafter, hidden = session.drafter, session.drafter.hidden_states[-1].copy()
            drafter.start(position)
            embedding = embedder.tokens.look_up([300])[0]
            guess = typical_seconds(partial(drafter.guess, embedding, hidden), arguments.alone)
        print(f"at position {position}, a guess: {guess * 1000:.1f} ms")
        plain = 0.0
        for count in range(LONGEST + 1):
            step = embedder.embed(generator.integers(300, 3000, count + 1).tolist())
            run = typical_seconds(
                partial(session.decoder.run, step.inputs_embeds, step.per_layer_inputs, position, count + 1),
                arguments.alone,
            )
            plain = plain or run
            share = break_even(run, guess, plain, count) if count else 0.0
            print(
                f"  {count} drafts: a run of {count + 1} takes {run * 1000:6.1f} ms, {run / plain:.2f} times one; "
                f"pays from {share:.0%} right drafts on"
            )


if __name__ == "__main__":
    main()
