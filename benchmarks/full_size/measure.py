"""Packages of E2B's size against llama.cpp and transformers, on the same random weights: benchmarks/RESULTS.md.

python benchmarks/full_size/measure.py [--folder build/full-size] [--packages int4 "litert int4" …] [--rounds 6]

All programs stay loaded and take turns of a second or so, so that a change of the machine's load hits all alike; read
bandwidth is measured in the same turns. Ratios are medians over rounds of what one round gave.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from prepare import BUNDLE_CONTEXT, CONTEXT_LENGTH, LLAMA_CPP_PYTHON, REPOSITORY, Prepared, bundle_litertlm, prepare
from results import Results, Series, decoder_bytes, describe_processor, gguf_bytes, write_table
from workers import Worker

from cabochon_convert.recipes import DEFAULT_RECIPE

DEPTHS = (128, 1024, 8192)
PROMPTS = (128, 512, 1024)
SOUND_SECONDS = 10.0
NEW_TOKENS = 40
LLAMA = "llama.cpp Q4_0"
TRANSFORMERS = "transformers bf16"
# The sampler's first steps after a run of many positions wake threads.
WARM_UP = 2
# Turns of decoding are short, so there are more of them in a round.
TURNS_OF_DECODING = 3


def main() -> int:
    """Prepare, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "build" / "full-size")
    packages = ["int2-small", "int4", DEFAULT_RECIPE, "litert int4"]
    parser.add_argument("--packages", nargs="+", default=packages, help="recipes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=6, help="(default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=8, help="decoded in a turn (default: %(default)s)")
    parser.add_argument("--without-transformers", action="store_true")
    arguments = parser.parse_args()
    prepared = prepare(arguments.folder.resolve(), arguments.packages, SOUND_SECONDS)
    threads = len(os.sched_getaffinity(0))
    results = Results(speech_title=f"{SOUND_SECONDS:.0f} s of speech and {NEW_TOKENS} tokens, s")
    for _ in range(3):
        for worker in _load(prepared, threads):
            with worker:
                results.load.add(worker.name, worker.load_seconds)
    with ExitStack() as stack:
        workers = [stack.enter_context(worker) for worker in _load(prepared, threads)]
        _note_memory(results, "loaded", workers)
        _measure_prefill(results, workers, arguments.rounds)
        _measure_decode(results, workers, prepared, threads, arguments)
    # Afresh, because what was held for 8192 positions would count.
    with ExitStack() as stack:
        workers = [stack.enter_context(worker) for worker in _load(prepared, threads)]
        for worker in workers:
            worker.prefill(4000)
            worker.decode(96)
        _note_memory(results, "4096 positions", workers)
        _measure_speech(results, workers, prepared, arguments.rounds)
        _note_memory(results, "after speech", workers)
    weights = {recipe: decoder_bytes(package) for recipe, package in prepared.packages.items()}
    weights[LLAMA] = gguf_bytes(prepared.gguf)
    text = (
        "# Full-size benchmark\n\n"
        f"Random weights of E2B's shape, {threads} threads of {describe_processor()}; `make bench-fullsize`, "
        f"{arguments.rounds} rounds in turns, medians. llama.cpp is that of {LLAMA_CPP_PYTHON}, all weights in Q4_0 "
        "(`--pure`), per-layer embeddings read on demand; × is the median over rounds of the ratio to it in the same "
        "round.\n\n" + write_table(results, weights, LLAMA)
    )
    for name, package in prepared.packages.items():
        if name.startswith("litert "):
            text += _litert_lm_lines(package, bundle_litertlm(package), threads, arguments)
    if not arguments.without_transformers:
        with Worker(TRANSFORMERS, _transformers_command(prepared, threads)) as worker:
            text += _transformers_lines(worker)
    (REPOSITORY / "benchmarks" / "RESULTS.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def _load(prepared: Prepared, threads: int) -> list[Worker]:
    here = Path(__file__).parent
    instruction = "Transcribe the following speech segment in German, then translate it into English."
    settings = [str(threads), str(CONTEXT_LENGTH)]
    commands: dict[str, list[str | Path]] = {
        recipe: [sys.executable, here / "cabochon_worker.py", package, *settings]
        for recipe, package in prepared.packages.items()
    }
    commands[LLAMA] = [prepared.llama_worker, prepared.gguf, prepared.projector, *settings, instruction]
    return [Worker(name, command) for name, command in commands.items()]


def _transformers_command(prepared: Prepared, threads: int) -> list[str | Path]:
    return [sys.executable, Path(__file__).parent / "transformers_worker.py", prepared.checkpoint, str(threads)]


def _measure_prefill(results: Results, workers: Sequence[Worker], rounds: int) -> None:
    for worker in workers:
        worker.prefill(64)
    for length in PROMPTS:
        series = results.prefill[length] = Series()
        for turn in range(rounds):
            for worker in _turned(workers, turn):
                series.add(worker.name, length / worker.prefill(length))
        _say(f"prefill {length}", series)


def _measure_decode(
    results: Results, workers: Sequence[Worker], prepared: Prepared, threads: int, arguments: argparse.Namespace
) -> None:
    for depth in DEPTHS:
        series = results.decode[depth] = Series()
        for worker in workers:
            worker.prefill(depth)
        for turn in range(TURNS_OF_DECODING * arguments.rounds):
            rate = subprocess.run([prepared.read_bandwidth, str(threads)], check=True, capture_output=True, text=True)
            results.bandwidth.setdefault(depth, []).append(float(rate.stdout))
            for worker in _turned(workers, turn):
                each = worker.decode(WARM_UP + arguments.tokens)[WARM_UP:]
                series.add(worker.name, 1 / median(each))
        _say(f"decode at {depth}", series)


def _measure_speech(results: Results, workers: Sequence[Worker], prepared: Prepared, rounds: int) -> None:
    for turn in range(rounds + 1):
        for worker in _turned(workers, turn):
            heard = worker.hear(prepared.sound, NEW_TOKENS)
            if turn:  # the first one warms up
                results.speech.add(worker.name, heard["seconds"])
    _say("speech", results.speech)


def _turned(workers: Sequence[Worker], turn: int) -> list[Worker]:
    """Another one begins each turn."""
    first = turn % len(workers)
    return [*workers[first:], *workers[:first]]


def _note_memory(results: Results, moment: str, workers: Sequence[Worker]) -> None:
    results.resident[moment] = {worker.name: worker.resident() for worker in workers}


def _say(what: str, series: Series) -> None:
    print(what, {name: round(series.median(name), 2) for name in series.values}, file=sys.stderr, flush=True)


def _litert_lm_lines(package: Path, bundle: Path, threads: int, arguments: argparse.Namespace) -> str:
    """Our loop and LiteRT-LM's own on the same graphs, in turns."""
    here, prompt, tokens = Path(__file__).parent, 512, 4 * arguments.tokens
    context = str(BUNDLE_CONTEXT)
    commands = {
        "cabochon": [sys.executable, here / "cabochon_worker.py", package, str(threads), context],
        "LiteRT-LM": [sys.executable, here / "litert_lm_worker.py", bundle, str(threads), context],
    }
    prefill, decode = Series(), Series()
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(name, command)) for name, command in commands.items()]
        for turn in range(arguments.rounds + 1):
            for worker in _turned(workers, turn):
                seconds, each = worker.fill(prompt), worker.decode(tokens)
                if turn:  # the first one warms up
                    prefill.add(worker.name, prompt / seconds)
                    decode.add(worker.name, 1 / median(each))
        resident = {worker.name: worker.resident()["VmHWM"] / 1e9 for worker in workers}
    ours, theirs = commands
    lines = [
        f"\n`{bundle.name}`, {bundle.stat().st_size / 1e9:.2f} GB, in LiteRT-LM and its graphs in cabochon's loop:\n"
    ]
    for title, series in (
        (f"prefill of {prompt} without logits, positions/s", prefill),
        (f"decode at {prompt}, tokens/s", decode),
    ):
        ratio = series.ratio(ours, theirs)
        lines.append(f"{title}: {series.median(ours):.1f} against {series.median(theirs):.1f} ({ratio:.2f}×);")
    lines.append(f"peak resident GB: {resident[ours]:.2f} against {resident[theirs]:.2f}.\n")
    return "\n".join(lines)


def _transformers_lines(worker: Worker) -> str:
    prefill = 64 / worker.prefill(64)
    decode = 1 / median(worker.decode(4)[1:])
    return (
        f"\n{TRANSFORMERS}, afterwards: load {worker.load_seconds:.0f} s, prefill of 64 {prefill:.1f} positions/s, "
        f"decode {decode:.2f} tokens/s, {worker.resident()['VmHWM'] / 1e9:.1f} GB resident at most.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
