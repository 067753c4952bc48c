"""What cutting a long sound at its pauses costs: word error rates of ten minutes in one file, and of utterances alone.

python benchmarks/long_speech.py [--minutes 10] [--pause 0.8]

Needs what benchmarks/fidelity.py needs. Utterances of one language follow each other with pauses between them, and are
transcribed by models/tiny with its default recipe.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import jiwer
import numpy as np
import soundfile

# Importing it lets models be found, too.
from fidelity import TINY, spoken_data
from models.tiny.training.voices import SAMPLE_RATE, TESTS

import cabochon
from cabochon.long_speech import transcribe_long
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.recipes import DEFAULT_RECIPE, RECIPES


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="(default: %(default)s)")
    parser.add_argument("--pause", type=float, default=0.8, help="seconds between utterances (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        package = convert_checkpoint(TINY, folder / "package", ConversionSettings(RECIPES[DEFAULT_RECIPE])).folder
        model = cabochon.load(package)
        print("| condition | language | minutes | utterances | parts | WER % alone | in one file | real-time factor |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        # Four words a second, and a pause: more utterances than fit.
        count = round(4 * arguments.minutes * 60 / 2.5)
        for condition in TESTS[:1]:
            for data in spoken_data(condition, count, folder / condition.name):
                texts, pieces, seconds, alone = [], [np.zeros(SAMPLE_RATE, np.float32)], 1.0, []
                for example in data.spoken:
                    waveform, _ = soundfile.read(example.sound, dtype="float32")
                    pieces += [waveform, np.zeros(round(arguments.pause * SAMPLE_RATE), np.float32)]
                    seconds += len(waveform) / SAMPLE_RATE + arguments.pause
                    texts.append(example.text)
                    alone.append(model.transcribe(waveform, data.language).finish().strip())
                    if seconds > 60 * arguments.minutes:
                        break
                path = folder / "long.flac"
                soundfile.write(path, np.concatenate(pieces), SAMPLE_RATE)
                started = time.perf_counter()
                parts = [part.transcript for part in transcribe_long(model, path, data.language)]
                factor = (time.perf_counter() - started) / seconds
                rates = [100 * jiwer.wer(" ".join(texts), " ".join(found)) for found in (alone, parts)]
                print(
                    f"| {condition.name} | {data.language} | {seconds / 60:.1f} | {len(texts)} | {len(parts)} "
                    f"| {rates[0]:.2f} | {rates[1]:.2f} | {factor:.3f} |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
