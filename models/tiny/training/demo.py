"""Writes the demonstration clips: one of each spoken language and test condition, from seeds that no figure uses."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Final

import soundfile

from .speech import distinct_utterances
from .voices import SAMPLE_RATE, TESTS

_DEMO_FOLDER: Final = Path(__file__).resolve().parents[1] / "demo"
_SEED_OFFSET: Final = 1000
_CLIPS: Final = {
    "english_unseen_voice.wav": ("unseen voices", "en", "de"),
    "german_unseen_voice.wav": ("unseen voices", "de", "en"),
    "french_unseen_accent.wav": ("unseen accents", "fr", "es"),
    "spanish_seen_voice.wav": ("unseen sentences", "es", "fr"),
}
"""File name: condition, spoken language, language to translate into."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=_DEMO_FOLDER, help="(%(default)s)")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    conditions = {condition.name: condition for condition in TESTS}
    references = []
    for name, (condition_name, source, target) in _CLIPS.items():
        condition = conditions[condition_name]
        fresh = dataclasses.replace(condition, seed=condition.seed + _SEED_OFFSET)
        (utterance,) = distinct_utterances(fresh, 1, source)
        soundfile.write(folder / name, utterance.waveform, SAMPLE_RATE, subtype="PCM_16")
        facts = {"file": name, "voice": utterance.voice.name, "source": source, "target": target}
        references.append(facts | dict(utterance.sentence.written))
    (folder / "references.json").write_text(json.dumps(references, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
