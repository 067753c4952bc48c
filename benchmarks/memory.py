"""What packages take in memory, measured, beside what `cabochon info` computes.

python benchmarks/memory.py PACKAGE … [--context-length 4096] [--json]

A fresh process loads each package as a command does, fills its context, decodes, then hears the longest sound and sees
an image of the default budget; the most that it had in memory is noted after each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import cabochon.cli  # as in a command, all is imported
from cabochon.backend import EngineSettings
from cabochon.bench import LoadedPackage
from cabochon.engines import choose_engine
from cabochon.machine import resident_memory
from cabochon.memory_cost import compute_memory_cost
from cabochon.package import open_package
from cabochon.prompt import PromptWriter
from cabochon.tokenizer import Tokenizer

NEW_TOKENS = 4


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+", type=Path)
    parser.add_argument("--context-length", type=int, default=0, help="positions that are filled (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # measure this process
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(_measure(arguments.packages[0], arguments.context_length)))
        return 0
    found = {}
    for package in arguments.packages:
        command = [sys.executable, __file__, package, "--here", "--context-length", str(arguments.context_length)]
        outcome = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[str(package)] = json.loads(outcome.stdout.splitlines()[-1])
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    for name, stages in found.items():
        for stage, (measured, computed) in stages.items():
            print(f"{name}: {stage:10} {measured / 1e6:8.0f} MB, computed {computed / 1e6:8.0f} MB, "
                  f"{100 * (computed / measured - 1):+.1f} %")  # fmt: skip
    return 0


def _measure(folder: Path, context_length: int) -> dict[str, tuple[int, int]]:
    """By stage: most bytes so far, as measured and as computed."""
    package = open_package(folder)
    cost = compute_memory_cost(package.manifest, choose_engine(package), context_length)
    tokenizer = Tokenizer(package.path(package.manifest.tokenizer_file))
    prompts = PromptWriter(package, tokenizer)
    loaded = LoadedPackage(package, "", EngineSettings(context_length=context_length))
    stages = {"loading": (_peak(), cost.loading)}
    loaded.prefill(loaded.capacity - NEW_TOKENS)
    loaded.decode(NEW_TOKENS)
    stages["text"] = (_peak(), cost.text)
    audio, vision = package.manifest.audio, package.manifest.vision
    if cost.sound is not None and audio is not None:
        loaded.hear(audio.max_samples / audio.sample_rate)
        stages["sound"] = (_peak(), cost.sound)
    if cost.image is not None and vision is not None:
        loaded.see(vision.default_soft_token_budget)
        stages["everything"] = (_peak(), cost.everything)
    del prompts
    return stages


def _peak() -> int:
    peak = resident_memory().peak
    if peak is None:
        sys.exit("this system does not tell what a process has in memory: Linux does")
    return peak


if __name__ == "__main__":
    assert cabochon.cli
    sys.exit(main())
