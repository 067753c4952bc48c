"""Speed and size of packages, measured in turn so that a change of the machine's load hits all alike.

python benchmarks/speed.py [PACKAGE …] [--rounds 7] [--seconds 5]

Without a package, models/tiny is converted with every recipe that needs no data of the user. Medians are printed; the
speech is noise of a fixed length, because speed does not depend on what is said.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

import cabochon
from cabochon import Message, Model, SamplingSettings
from cabochon.machine import resident_memory
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.recipes import RECIPES

TINY = Path(__file__).resolve().parent.parent / "models" / "tiny"
NEW_TOKENS = 32


@dataclass(slots=True)
class Figures:
    """What was measured of one package."""

    name: str
    model: Model
    load_seconds: float
    resident_bytes: int
    encode: list[float] = field(default_factory=list)
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)

    def measure(self, waveform: np.ndarray) -> None:
        """One clip through the whole line, then a plain answer that no stop token ends early."""
        answer = self.model.transcribe(waveform, "English", max_tokens=NEW_TOKENS)
        answer.finish()
        self.encode.append(answer.statistics.audio_seconds / answer.statistics.encode_seconds)
        self.prefill.append(answer.statistics.prompt_positions / answer.statistics.prefill_seconds)
        # Sampled, so that every token asks the embedding tables for another row.
        settings = SamplingSettings.of_checkpoint(self.model.package.manifest.sampling, seed=len(self.decode))
        answer = self.model.chat([Message("user", "Where is the station?")], settings, max_tokens=NEW_TOKENS)
        answer.finish()
        if answer.statistics.new_tokens > 1:
            self.decode.append(answer.statistics.tokens_per_second)

    def row(self) -> str:
        """The table row."""
        size = self.model.package.size / 1e6
        decode = f"{median(self.decode):.1f}" if self.decode else "-"
        return (
            f"{self.name:24} {size:9.1f} {self.load_seconds:7.2f} {self.resident_bytes / 1e6:8.0f} "
            f"{median(self.encode):9.1f} {median(self.prefill):9.1f} {decode:>9}"
        )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, choices=range(1, 100), metavar="1…99", default=7)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of the clip (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        packages = arguments.packages or _convert_tiny(Path(folder))
        subjects = [_load(package) for package in packages]
        audio = subjects[0].model.package.manifest.audio
        rate = audio.sample_rate if audio else 16_000
        generator = np.random.default_rng(0)
        waveform = (0.1 * generator.standard_normal(int(arguments.seconds * rate))).astype(np.float32)
        for _ in range(arguments.rounds):
            for subject in subjects:
                subject.measure(waveform)
    print(
        f"{'package':24} {'size MB':>9} {'load s':>7} {'RSS MB':>8} {'encoder x':>9} {'prefill/s':>9} {'decode/s':>9}"
    )
    for subject in subjects:
        print(subject.row())
    print(
        "\nencoder x: seconds of sound per second; prefill/s and decode/s: positions per second; RSS: added by loading"
    )
    return 0


def _convert_tiny(folder: Path) -> list[Path]:
    applicable = (recipe for recipe in RECIPES.values() if not (recipe.is_calibrated or recipe.keeps_integers))
    for recipe in applicable:
        convert_checkpoint(TINY, folder / f"tiny-{recipe.name}", ConversionSettings(recipe))
    return sorted(folder.iterdir())


def _load(package: Path) -> Figures:
    cabochon.package.open_package(package)  # the first opening hashes the files
    before, started = _resident_bytes(), time.perf_counter()
    model = cabochon.load(package)
    return Figures(package.name, model, time.perf_counter() - started, _resident_bytes() - before)


def _resident_bytes() -> int:
    return resident_memory().now or 0


if __name__ == "__main__":
    sys.exit(main())
