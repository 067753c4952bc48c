"""What each recipe does to the small model's answers, on many utterances: packages only, without the checkpoint.

python benchmarks/transcripts.py [--utterances 512] [--recipes float int4] [--integer-caches]

Needs what benchmarks/fidelity.py needs, which tells more and takes ten times as long. Every utterance is translated
into one other language, by the published prompt; the transcript that comes before gives the word error rate, the
translation chrF. Rates are of all utterances of a condition, in equal parts of each spoken language.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jiwer
import sacrebleu

# Importing it lets models be found, too.
from fidelity import CALIBRATION_UTTERANCES, TINY, TRIED, spoken_data
from models.tiny.training.voices import TESTS, TRAINING

import cabochon
from cabochon_convert.calibration import Calibration
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.evaluation_data import SpokenExample
from cabochon_convert.progress import Silence
from cabochon_convert.recipes import DEFAULT_RECIPE, RECIPES


@dataclass(frozen=True, slots=True)
class Answered:
    """One utterance: what was said and meant, and what a package made of it."""

    said: str
    transcript: str
    meant: str
    translation: str


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=512, help="per condition (default: %(default)s)")
    parser.add_argument(
        "--recipes",
        nargs="+",
        choices=TRIED,
        default=["float", DEFAULT_RECIPE],
        help="(default: the float one and the default)",
    )
    parser.add_argument("--integer-caches", action="store_true", help="each recipe with --kv-cache int8, too")
    parser.add_argument(
        "--conditions", nargs="+", choices=[each.name for each in TESTS], default=[each.name for each in TESTS]
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        calibration = Calibration(spoken_data(TRAINING, CALIBRATION_UTTERANCES, folder / "calibration"), Silence())
        models = {
            f"{name}, {kind} caches" if kind == "int8" else name: cabochon.load(
                convert_checkpoint(
                    TINY,
                    folder / f"{name}-{kind}",
                    ConversionSettings(RECIPES[name], calibration=calibration, kv_cache=kind),
                ).folder
            )
            for name in arguments.recipes
            for kind in ("float32", "int8")[: 1 + arguments.integer_caches]
        }
        print("| condition | recipe | WER % | chrF | the same answer as the first |")
        print("|---|---|---|---|---|", flush=True)
        for condition in (each for each in TESTS if each.name in arguments.conditions):
            data = spoken_data(condition, arguments.utterances, folder / condition.name)
            examples = [(part.language, example) for part in data for example in part.spoken]
            first: Sequence[Answered] = ()
            for name, model in models.items():
                answers = list(_answer(model, examples))
                first = first or answers
                print(f"| {condition.name} | {name} | {_rates(answers)} | {_same(answers, first):.1%} |", flush=True)
    return 0


def _answer(model: cabochon.Model, examples: Sequence[tuple[str, SpokenExample]]) -> Iterator[Answered]:
    for language, example in examples:
        (translation,) = example.translations
        answer = model.translate(example.sound, source=language, target=translation.language, max_tokens=96)
        answer.finish()
        yield Answered(example.text, answer.transcript, translation.text, answer.translation)


def _rates(answers: Sequence[Answered]) -> str:
    wer = 100 * jiwer.wer([answer.said for answer in answers], [answer.transcript for answer in answers])
    meant = [answer.meant for answer in answers]
    chrf = sacrebleu.corpus_chrf([answer.translation for answer in answers], [meant]).score
    return f"{wer:.2f} | {chrf:.2f}"


def _same(answers: Sequence[Answered], first: Sequence[Answered]) -> float:
    return sum(one == other for one, other in zip(answers, first, strict=True)) / len(answers)


if __name__ == "__main__":
    sys.exit(main())
