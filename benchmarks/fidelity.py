"""What each recipe does to the small model's answers: a table of recipe × held-out condition.

python benchmarks/fidelity.py [--utterances 100] [--recipes int4 int8]

Needs espeak-ng and the extra `train`, as models/tiny's own evaluation does: sentences, voices and accents are the same.
Every utterance is transcribed and translated; transcripts give the word error rate, translations chrF.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from cabochon_convert.calibration import Calibration
from cabochon_convert.convert import ConversionSettings, convert_onnx
from cabochon_convert.evaluation_data import EvaluationData, SpokenExample, Translation
from cabochon_convert.progress import Silence
from cabochon_convert.recipes import RECIPES
from cabochon_convert.report import Report
from cabochon_convert.verify import verify_packages

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = REPOSITORY / "models" / "tiny"
sys.path.insert(0, str(REPOSITORY))

from models.tiny.training.phrasebook import LANGUAGE_NAMES  # noqa: E402
from models.tiny.training.speech import SAMPLE_RATE, TESTS, TRAINING, Condition, distinct_utterances  # noqa: E402

CALIBRATION_UTTERANCES = 64
"""From the training side of the phrasebook."""
SOURCE, TARGET = "en", "de"
TRANSLATION = "Translation into "


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=100, help="per condition (default: %(default)s)")
    parser.add_argument("--recipes", nargs="+", choices=sorted(RECIPES), default=list(RECIPES), help="(default: all)")
    arguments = parser.parse_args()
    print("| recipe | size MB | condition | KL | same top token | WER % (change) | chrF (change) | same answer |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        calibration = Calibration([_data(TRAINING, CALIBRATION_UTTERANCES, folder / "calibration")], Silence())
        packages = []
        for name in arguments.recipes:
            settings = ConversionSettings(RECIPES[name], calibration=calibration)
            packages.append(convert_onnx(TINY, folder / name, settings).folder)
        for condition in TESTS:
            data = _data(condition, arguments.utterances, folder / condition.name)
            for report in verify_packages(packages, TINY, Silence(), data):
                print(_row(report, condition), flush=True)
    return 0


def _row(report: Report, condition: Condition) -> str:
    """Of the Markdown table."""
    spoken, translated = report.tasks
    assert spoken.rates is not None  # every example says what is spoken, and what it means
    assert translated.rates is not None
    answers = [*spoken.answers, *translated.answers]
    wer, chrf = spoken.rates.word_error_rate, translated.rates.chrf
    wer_change, chrf_change = wer - spoken.rates.reference_word_error_rate, chrf - translated.rates.reference_chrf
    same = np.mean([answer.answer == answer.reference_answer for answer in answers])
    divergence = np.mean([answer.divergence for answer in answers])
    return (
        f"| {report.recipe} | {report.size / 1e6:.1f} | {condition.name} | {divergence:.2g} "
        f"| {np.mean([a.same_top_token for a in answers]):.2%} | {wer:.2f} ({wer_change:+.2f}) "
        f"| {chrf:.2f} ({chrf_change:+.2f}) | {same:.1%} |"
    )


def _data(condition: Condition, count: int, folder: Path) -> EvaluationData:
    folder.mkdir()
    return EvaluationData(LANGUAGE_NAMES[SOURCE], tuple(_speak(condition, count, folder)), ())


def _speak(condition: Condition, count: int, folder: Path) -> Iterator[SpokenExample]:
    for number, utterance in enumerate(distinct_utterances(condition, count, SOURCE)):
        path = folder / f"{number:04}.wav"
        soundfile.write(path, utterance.waveform, SAMPLE_RATE, subtype="PCM_16")
        written = utterance.sentence.written
        yield SpokenExample(path, written[SOURCE], (Translation(LANGUAGE_NAMES[TARGET], written[TARGET]),))


if __name__ == "__main__":
    sys.exit(main())
