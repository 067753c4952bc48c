"""What a long context costs: time of each run of a prompt, of a token behind it, and memory, by depth.

python benchmarks/long_context.py PACKAGE … [--depths 512 2048 8192 16384 32768] [--filled] [--json]

A fresh process loads each package for the deepest context and runs one prompt of random tokens, 512 positions at a
time. At each depth it notes how long the last runs took, decodes some tokens, and goes back to where it was. With
--filled it does not run all that comes before the last runs, but fills caches with made-up numbers, which takes as much
memory and a fraction of the time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import cabochon.cli  # as in a command, all is imported
from cabochon.backend import LONGEST_RUN, CacheRows, EngineSettings, rows_needed
from cabochon.embedder import open_embedder
from cabochon.engines import choose_engine, open_session
from cabochon.machine import resident_memory
from cabochon.manifest import KeyValueCache
from cabochon.memory_cost import compute_memory_cost
from cabochon.package import open_package
from cabochon.tokenizer import Tokenizer

NEW_TOKENS = 8
RUNS = 3


@dataclass(frozen=True, slots=True)
class Depth:
    """What was measured where so many positions were run."""

    positions: int
    prefilled_seconds: float
    """Of all runs so far, without decoding."""
    run_seconds: float
    """Of one run of 512 positions that ends here, best of three."""
    token_seconds: float
    """Of one token, best of eight."""
    resident_bytes: int | None
    peak_bytes: int | None
    """Most so far, loading included."""


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+", type=Path)
    parser.add_argument("--depths", nargs="+", type=int, default=[512, 2048, 8192, 16384, 32768])
    parser.add_argument("--engine", default="")
    parser.add_argument("--filled", action="store_true", help="fill caches instead of running all that comes before")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # measure this process
    arguments = parser.parse_args()
    depths = sorted(arguments.depths)
    if arguments.here:
        found = _measure(arguments.packages[0], arguments.engine, depths, filled=arguments.filled)
        print(json.dumps([asdict(each) for each in found]))
        return 0
    for package in arguments.packages:
        command = [sys.executable, __file__, package, "--here", "--engine", arguments.engine]
        command += ["--depths", *map(str, depths)]
        command += ["--filled"] if arguments.filled else []
        outcome = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows = [Depth(**each) for each in json.loads(outcome.stdout.splitlines()[-1])]
        if arguments.json:
            print(json.dumps({str(package): [asdict(row) for row in rows]}))
            continue
        manifest = open_package(package).manifest
        cost = compute_memory_cost(manifest, choose_engine(open_package(package), arguments.engine), depths[-1])
        print(f"{package}: computed for text {cost.text / 1e9:.2f} GB, caches {cost.parts.caches / 1e6:.0f} MB of it")
        for row in rows:
            memory = " ".join(f"{(each or 0) / 1e9:.2f}" for each in (row.resident_bytes, row.peak_bytes))
            print(f"{row.positions:6} positions in {row.prefilled_seconds:6.1f} s, {row.run_seconds:5.2f} s a run, "
                  f"{1 / row.token_seconds:5.1f} tokens/s, resident and peak GB {memory}")  # fmt: skip
    return 0


def _measure(folder: Path, engine: str, depths: list[int], *, filled: bool) -> list[Depth]:
    package = open_package(folder)
    engine = choose_engine(package, engine)
    tokenizer = Tokenizer(package.path(package.manifest.tokenizer_file))
    decoder = open_session(package, engine, EngineSettings(context_length=depths[-1])).decoder
    embedder = open_embedder(package, engine)
    tokens = np.random.default_rng(0).integers(300, package.manifest.text.vocabulary_size * 9 // 10, depths[-1])
    # The deepest place is where the last tokens still fit.
    places = [min(depth, decoder.capacity - NEW_TOKENS) for depth in depths]
    found, runs, position = [], [], 0
    for place in places:
        if filled and place - RUNS * LONGEST_RUN > position:
            position = place - RUNS * LONGEST_RUN
            decoder.write_caches(_made_up_rows(package.manifest.engines[engine].caches, position))
        while position < place:
            end = min(position + LONGEST_RUN, place)
            started = time.perf_counter()
            part = embedder.embed(tokens[position:end].tolist())
            decoder.run(part.inputs_embeds, part.per_layer_inputs, position, logits_to_keep=0)
            runs.append(time.perf_counter() - started)
            print(f"{end} {runs[-1]:.2f} s", file=sys.stderr, flush=True)
            position = end
        decoded = []
        for ahead in range(NEW_TOKENS):
            started = time.perf_counter()
            step = embedder.embed([int(tokens[ahead])])
            decoder.run(step.inputs_embeds, step.per_layer_inputs, position + ahead)[-1].argmax()
            decoded.append(time.perf_counter() - started)
        memory = resident_memory()
        found.append(
            Depth(
                positions=place,
                prefilled_seconds=sum(runs),
                run_seconds=min(runs[-RUNS:]),
                token_seconds=min(decoded),
                resident_bytes=memory.now,
                peak_bytes=memory.peak,
            )
        )
    del tokenizer
    return found


def _made_up_rows(caches: Sequence[KeyValueCache], end: int) -> CacheRows:
    """The same row again and again, which takes no memory."""
    generator, rows = np.random.default_rng(0), []
    for cache in caches:
        shape = cache.heads, rows_needed(cache, end), cache.head_size
        row = generator.standard_normal((1, 1, cache.head_size), np.float32)
        stored = (16 * row).clip(-127, 127).astype(np.int8) if cache.storage == "int8" else row
        rows += 2 * [np.broadcast_to(stored, shape)]
    return CacheRows(end, tuple(rows))


if __name__ == "__main__":
    assert cabochon.cli
    sys.exit(main())
