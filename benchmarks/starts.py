"""How soon a package is ready in a fresh process, and what it keeps in memory then and after a short answer.

python benchmarks/starts.py PACKAGE … [--rounds 5] [--positions 400] [--tokens 20]

Packages take turns; what they write into the cache folder is written before the first round. Medians are printed, least
and most: seconds for the tokenizer and for the engine, and memory when both are loaded and after a prompt and tokens.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import cabochon.cli  # as in a command, all is imported
from cabochon.backend import EngineSettings
from cabochon.bench import LoadedPackage
from cabochon.engines import choose_engine
from cabochon.machine import resident_memory
from cabochon.package import open_package
from cabochon.tokenizer import Tokenizer


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--positions", type=int, default=400, help="of the prompt")
    parser.add_argument("--tokens", type=int, default=20, help="of the answer")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # measure this process
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(_measure(arguments.packages[0], arguments.positions, arguments.tokens)))
        return 0
    command = [sys.executable, __file__, "--here", "--positions", str(arguments.positions), "--tokens"]
    found: dict[Path, list[dict[str, float]]] = {package: [] for package in arguments.packages}
    for turn in range(arguments.rounds + 1):
        for package in arguments.packages:
            started = [*command, str(arguments.tokens), package]
            outcome = subprocess.run(started, check=True, stdout=subprocess.PIPE, text=True)
            if turn:
                found[package].append(json.loads(outcome.stdout.splitlines()[-1]))
    for package, rounds in found.items():
        print(package)
        for name in rounds[0]:
            values = [each[name] for each in rounds]
            print(f"    {name:45} {median(values):8.3f}   ({min(values):.3f} to {max(values):.3f})")
    return 0


def _measure(folder: Path, positions: int, tokens: int) -> dict[str, float]:
    package = open_package(folder)
    started = time.perf_counter()
    _tokenizer = Tokenizer(package.path(package.manifest.tokenizer_file))
    tokenizer_seconds = time.perf_counter() - started
    processor = time.process_time()
    loaded = LoadedPackage(package, choose_engine(package), EngineSettings())
    found = {
        "tokenizer, s": tokenizer_seconds,
        "engine, s": loaded.load_seconds,
        "engine, s of processor": time.process_time() - processor,
        **_memory("loaded"),
    }
    loaded.prefill(positions)
    loaded.decode(tokens)
    return found | _memory(f"after {positions} positions and {tokens} tokens")


def _memory(stage: str) -> dict[str, float]:
    memory = resident_memory()
    if memory.now is None or memory.anonymous is None:
        sys.exit("this system does not tell what a process has in memory: Linux does")
    return {f"resident GB, {stage}": memory.now / 1e9, f"anonymous GB, {stage}": memory.anonymous / 1e9}


if __name__ == "__main__":
    assert cabochon.cli
    sys.exit(main())
