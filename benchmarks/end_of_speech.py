"""Seconds from the end of speech to the first piece of the answer: heard while it was spoken, and heard as a whole.

python benchmarks/end_of_speech.py PACKAGE [SOUND] [--rounds 11]

Both in turns, medians. Without a sound, ten seconds of noise, whose answer may be anything.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import soundfile

import cabochon

PIECE_SECONDS = 0.1


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("sound", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=11, help="(default: %(default)s)")
    arguments = parser.parse_args()
    model = cabochon.load(arguments.package)
    rate = model.audio_model.sample_rate
    if arguments.sound:
        waveform, found_rate = soundfile.read(arguments.sound, dtype="float32")
        if found_rate != rate:
            sys.exit(f"{arguments.sound} has {found_rate} samples a second, expected {rate}")
    else:
        waveform = np.random.default_rng(0).uniform(-0.1, 0.1, 10 * rate).astype(np.float32)
    ways: dict[str, Callable[[cabochon.Model, np.ndarray], float]] = {"as a whole": _whole, "while spoken": _followed}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(arguments.rounds + 1):
        for name, way in ways.items():
            taken = way(model, waveform)
            if turn:  # the first one warms up
                seconds[name].append(taken)
    whole, followed = (median(values) for values in seconds.values())
    print(f"{len(waveform) / rate:.1f} s of sound, {arguments.rounds} rounds")
    for name, values in seconds.items():
        print(f"{name}: {1000 * median(values):.0f} ms ({1000 * min(values):.0f} to {1000 * max(values):.0f})")
    ratios = [one / other for one, other in zip(*seconds.values(), strict=True)]
    print(f"{whole / followed:.1f} times sooner; {median(ratios):.1f} times as the median of the rounds' ratios")
    return 0


def _whole(model: cabochon.Model, waveform: np.ndarray) -> float:
    started = time.perf_counter()
    next(model.translate(waveform, source="English", target="German"))
    return time.perf_counter() - started


def _followed(model: cabochon.Model, waveform: np.ndarray) -> float:
    clip = model.start_clip("English", target="German")
    if clip is None:
        sys.exit("the package's engine takes whole clips only")
    size = round(PIECE_SECONDS * model.audio_model.sample_rate)
    for start in range(0, len(waveform), size):
        clip.push(waveform[start : start + size])
    started = time.perf_counter()
    next(model.finish_clip(clip, "German"))
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
