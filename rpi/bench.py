"""How fast a package is on this Raspberry Pi, as Markdown to be pasted: python bench.py PACKAGE [--litert-lm FILE]

With the Python that install.sh made: ~/.local/share/cabochon/current/venv/bin/python. Prefill, decoding, both encoders,
the wait at the end of speech, memory, heat, throttling, and joules where the board measures its power (Pi 5). Decoding
is compared with what the memory's bandwidth allows, and with LiteRT-LM where that is installed.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np

import cabochon
from cabochon.backend import EngineSettings
from cabochon.bench import BenchSettings, LoadedPackage, Measurement, measure_package
from cabochon.energy import find_meter
from cabochon.engines import choose_engine
from cabochon.errors import CabochonError
from cabochon.machine import find_memory, find_processor, page_size
from cabochon.memory_cost import compute_memory_cost
from cabochon.package import Package, open_package
from cabochon.raspberry_pi import Board, find_board, judge_board
from cabochon.thread_placement import choose_thread_count

READ_BYTES = 64 << 20
"""Of each thread: more than any cache of a Pi."""
PIECE_SECONDS = 0.1
SHORT = 128
"""Positions, where placements of threads are compared."""


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--engine", default="", help="(default: what the package was made for)")
    parser.add_argument("--threads", type=int, default=0, help="(default: all processors)")
    parser.add_argument("--pin-threads", action="store_true", help="keep each of them on one processor")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--time-limit", type=float, default=300.0, help="seconds (default: %(default)g)")
    parser.add_argument("--litert-lm", type=Path, metavar="FILE", help="a .litertlm of the same model, to compare with")
    arguments = parser.parse_args()
    try:
        measure(arguments)
    except CabochonError as error:
        print(f"bench.py: {error}", file=sys.stderr)
        return 2
    return 0


def measure(arguments: argparse.Namespace) -> None:
    """All of it, line by line."""
    package = open_package(arguments.package)
    engine = choose_engine(package, arguments.engine)
    print_machine()
    threads = arguments.threads or choose_thread_count()
    bandwidth = read_bandwidth(threads)
    settings = BenchSettings(rounds=arguments.rounds, time_limit=arguments.time_limit)
    with ExitStack() as stack:
        meter = find_meter()
        if meter is not None:
            stack.callback(meter.close)
        engine_settings = EngineSettings(arguments.threads, pinned=arguments.pin_threads)
        result = measure_package(package, engine, engine_settings, settings, meter, lambda *_: None)
    resident = f"{(result.peak_bytes or 0) / 1e9:.2f} GB resident at most"
    print(f"\n{result.package}, {result.recipe}, {result.library}, {result.threads} threads, {resident}\n")
    energy = result.energy_source
    print("| what | median | range |" + (f" joules ({energy}) |" if energy else ""))
    print("|---|---|---|" + ("---|" if energy else ""))
    for each in result.measurements:
        print(row(each, with_energy=energy is not None))
    for name, values in end_of_speech(arguments).items():
        low, high = min(values), max(values)
        print(f"| end of speech, {name} | {median(values):.2f} s | {low:.2f}–{high:.2f} |" + (" |" if energy else ""))
    for skipped in result.skipped:
        print(f"\nleft out: {skipped}")
    weights = compute_memory_cost(package.manifest, engine).parts.decoder_weights
    print(
        f"\nMemory is read at {bandwidth / 1e9:.1f} GB/s (numpy, {threads} threads); a token reads "
        f"{weights / 1e9:.2f} GB of weights, so that at most {bandwidth / weights:.1f} tokens/s are to be expected "
        "(computed)."
    )
    print_placements(package, engine, threads, arguments.rounds)
    if arguments.litert_lm is not None:
        print(compare_with_litert_lm(arguments.litert_lm, threads))
    board = find_board()
    if board is not None:
        print(f"\nAfterwards: {heat(board)}.")


def print_machine() -> None:
    """What was measured on."""
    board, memory, processor = find_board(), find_memory(), find_processor()
    name = board.model if board else f"{processor.model} (not a Raspberry Pi)"
    print(
        f"{name}, {(memory.total or 0) / 1e9:.1f} GB, {processor.cores} cores ({', '.join(processor.features)}), "
        f"pages of {page_size()} bytes, Linux {platform.release()}, Python {platform.python_version()}, cabochon "
        f"{cabochon.__version__}" + (f"; before: {heat(board)}" if board else "")
    )


def heat(board: Board) -> str:
    """Temperature, clock and throttling."""
    wanted = ("temperature", "throttling", "governor")
    return ", ".join(f"{each.name} {each.found}" for each in judge_board(board) if each.name in wanted)


def row(found: Measurement, *, with_energy: bool) -> str:
    """A line of the table."""
    what = f"{found.name}, {found.amount:g} {found.unit}"
    joules = f" {median(found.joules):.2f} |" if found.joules else " |"
    return f"| {what} | {found.median:.2f} {found.quantity} | {min(found.values):.2f}–{max(found.values):.2f} |" + (
        joules if with_energy else ""
    )


def read_bandwidth(threads: int) -> float:
    """Bytes a second that all threads together read: the best of five."""
    arrays = [np.zeros(READ_BYTES // 8, np.uint64) for _ in range(threads)]
    for array in arrays:
        array += 1  # zeros are not there until they are written
    best = 0.0
    for _ in range(5):
        workers = [threading.Thread(target=np.bitwise_or.reduce, args=(array,)) for array in arrays]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, READ_BYTES * threads / (time.perf_counter() - started))
    return best


def end_of_speech(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds from the end of ten seconds of noise to the first piece of an answer; empty without an audio encoder."""
    model = cabochon.load(
        arguments.package, engine=arguments.engine, threads=arguments.threads, pin_threads=arguments.pin_threads
    )
    if model.package.manifest.audio is None:
        return {}
    rate = model.audio_model.sample_rate
    waveform = np.random.default_rng(0).uniform(-0.1, 0.1, 10 * rate).astype(np.float32)
    seconds: dict[str, list[float]] = {}
    for turn in range(arguments.rounds + 1):
        for name in ("heard as a whole", "heard while spoken"):
            clip = model.start_clip("English", target="German") if name == "heard while spoken" else None
            if name == "heard while spoken" and clip is None:
                continue
            if clip is not None:
                size = round(PIECE_SECONDS * rate)
                for start in range(0, len(waveform), size):
                    clip.push(waveform[start : start + size])
            started = time.perf_counter()
            answer = (
                model.translate(waveform, source="English", target="German")
                if clip is None
                else model.finish_clip(clip, "German")
            )
            next(iter(answer), None)
            if turn:  # the first one warms up
                seconds.setdefault(name, []).append(time.perf_counter() - started)
    return seconds


def print_placements(package: Package, engine: str, threads: int, rounds: int) -> None:
    """Whether fewer threads, or threads that stay where they are, are faster: for --threads and --pin-threads."""
    print(f"\n| threads | prefill, {SHORT} positions | decode behind {SHORT} |\n|---|---|---|")
    for count, pinned in itertools.product(sorted({threads, max(1, threads - 1)}, reverse=True), (False, True)):
        loaded = LoadedPackage(package, engine, EngineSettings(count, pinned=pinned))
        loaded.prefill(SHORT)  # the first run allocates
        prefill = median(loaded.prefill(SHORT) for _ in range(rounds))
        loaded.fill(SHORT)
        decode = median(loaded.decode(rounds * BenchSettings().tokens))
        name = f"{count}{', pinned' if pinned else ''}"
        print(f"| {name} | {SHORT / prefill:.2f} positions/s | {1 / decode:.2f} tokens/s |", flush=True)
        del loaded  # or two of them would be in memory at once


def compare_with_litert_lm(path: Path, threads: int) -> str:
    """Its own benchmark, at the lengths of ours."""
    try:
        import litert_lm
    except ImportError:
        return "\nLiteRT-LM is not installed here: pip install litert-lm-api."
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.SILENT)
    backend = litert_lm.Backend.CPU(thread_count=threads)
    found = litert_lm.Benchmark(
        model_path=str(path), backend=backend, max_num_tokens=2048, prefill_tokens=128, decode_tokens=32
    ).run()
    return (
        f"\nLiteRT-LM with {path.name}: prefill of 128 {found.last_prefill_tokens_per_second:.2f} tokens/s, then "
        f"decoding {found.last_decode_tokens_per_second:.2f} tokens/s."
    )


if __name__ == "__main__":
    sys.exit(main())
