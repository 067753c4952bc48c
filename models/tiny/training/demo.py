"""Writes the three demonstration clips: the first utterance of each test condition, from seeds that no figure uses."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Final

import soundfile

from .speech import SAMPLE_RATE, TESTS, utterances

_DEMO_FOLDER: Final = Path(__file__).resolve().parents[1] / "demo"
_SEED_OFFSET: Final = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=_DEMO_FOLDER, help="(%(default)s)")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    references = []
    for condition, name in zip(TESTS, ("seen_voice.wav", "unseen_voice.wav", "unseen_accent.wav"), strict=True):
        fresh = dataclasses.replace(condition, seed=condition.seed + _SEED_OFFSET)
        (utterance,) = utterances(fresh, first=0, count=1)
        soundfile.write(folder / name, utterance.waveform, SAMPLE_RATE, subtype="PCM_16")
        references.append({"file": name, "voice": utterance.voice, **utterance.sentence.written})
    (folder / "references.json").write_text(json.dumps(references, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
