"""What each recipe does to the small model's answers: a table of recipe × held-out condition.

python benchmarks/fidelity.py [--utterances 100] [--recipes int4 int8]

Needs espeak-ng, MBROLA's voices and the extra `train`, as models/tiny's own evaluation does: sentences, voices and
accents are the same. Every utterance is transcribed and translated into one other language; transcripts give the word
error rate, translations chrF, both averaged over the spoken languages.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile

from cabochon_convert.calibration import Calibration
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.evaluation_data import EvaluationData, SpokenExample, Translation
from cabochon_convert.progress import Silence
from cabochon_convert.recipes import RECIPES
from cabochon_convert.report import Report
from cabochon_convert.verify import verify_packages

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = REPOSITORY / "models" / "tiny"
sys.path.insert(0, str(REPOSITORY))

from models.tiny.training.speech import distinct_utterances  # noqa: E402
from models.tiny.training.voices import SAMPLE_RATE, TESTS, TRAINING, Condition  # noqa: E402
from models.tiny.training.words import LANGUAGE_NAMES, LANGUAGES  # noqa: E402

TRIED = [name for name, recipe in RECIPES.items() if not recipe.keeps_integers]
CALIBRATION_UTTERANCES = 64
"""From the training side of the phrasebook, all languages together."""


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=100, help="per condition (default: %(default)s)")
    parser.add_argument("--recipes", nargs="+", choices=sorted(RECIPES), default=TRIED, help="(default: all)")
    arguments = parser.parse_args()
    print("| recipe | size MB | condition | KL | same top token | WER % (change) | chrF (change) | same answer |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        calibration = Calibration(spoken_data(TRAINING, CALIBRATION_UTTERANCES, folder / "calibration"), Silence())
        packages = []
        for name in arguments.recipes:
            settings = ConversionSettings(RECIPES[name], calibration=calibration)
            packages.append(convert_checkpoint(TINY, folder / name, settings).folder)
        for condition in TESTS:
            languages = [
                verify_packages(packages, TINY, Silence(), data)
                for data in spoken_data(condition, arguments.utterances, folder / condition.name)
            ]
            for reports in zip(*languages, strict=True):
                print(_row(reports, condition), flush=True)
    return 0


def _row(reports: Sequence[Report], condition: Condition) -> str:
    """Of the Markdown table: one package's reports, one for each spoken language."""
    spoken, translated = ([report.tasks[task].rates for report in reports] for task in (0, 1))
    answers = [answer for report in reports for task in report.tasks for answer in task.answers]
    # Every example says what is spoken, and what it means: there are rates for all.
    wer, reference_wer = (
        np.mean([getattr(rates, name) for rates in spoken]) for name in ("word_error_rate", "reference_word_error_rate")
    )
    chrf, reference_chrf = (
        np.mean([getattr(rates, name) for rates in translated]) for name in ("chrf", "reference_chrf")
    )
    same = np.mean([answer.answer == answer.reference_answer for answer in answers])
    return (
        f"| {reports[0].recipe} | {reports[0].size / 1e6:.1f} | {condition.name} "
        f"| {np.mean([answer.divergence for answer in answers]):.2g} "
        f"| {np.mean([answer.same_top_token for answer in answers]):.2%} | {wer:.2f} ({wer - reference_wer:+.2f}) "
        f"| {chrf:.2f} ({chrf - reference_chrf:+.2f}) | {same:.1%} |"
    )


def spoken_data(condition: Condition, count: int, folder: Path) -> list[EvaluationData]:
    """For each spoken language an equal part of so many utterances."""
    folder.mkdir()
    share = -(-count // len(condition.accents))
    return [
        EvaluationData(LANGUAGE_NAMES[source], tuple(_speak(condition, share, source, folder)), ())
        for source in condition.accents
    ]


def _speak(condition: Condition, count: int, source: str, folder: Path) -> Iterator[SpokenExample]:
    """Every language is translated into the next one."""
    target = LANGUAGES[(LANGUAGES.index(source) + 1) % len(LANGUAGES)]
    for number, utterance in enumerate(distinct_utterances(condition, count, source)):
        path = folder / f"{source}{number:04}.wav"
        soundfile.write(path, utterance.waveform, SAMPLE_RATE, subtype="PCM_16")
        written = utterance.sentence.written
        yield SpokenExample(path, written[source], (Translation(LANGUAGE_NAMES[target], written[target]),))


if __name__ == "__main__":
    sys.exit(main())
