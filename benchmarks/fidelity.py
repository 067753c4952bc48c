"""What each recipe does to the small model's answers: a table of recipe × held-out condition.

python benchmarks/fidelity.py [--utterances 40] [--recipes int4 int8]

Needs espeak-ng, MBROLA's voices and the extra `train`, as models/tiny's own evaluation does: sentences, voices and
accents are the same. Every utterance is transcribed and translated into one other language. Figures of a condition are
over all four spoken languages together; transcripts give the word error rate, translations chrF.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jiwer
import numpy as np
import sacrebleu
import soundfile

from cabochon.prompt import split_translation
from cabochon_convert.calibration import Calibration
from cabochon_convert.convert import ConversionSettings, convert_onnx
from cabochon_convert.evaluation_data import EvaluationData, SpokenExample, Translation
from cabochon_convert.fidelity import AnswerFidelity, TaskFidelity
from cabochon_convert.processor import PROMPTS
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

CALIBRATION_UTTERANCES = 32
"""Per spoken language, from the training side of the phrasebook."""
TRANSLATION = "Translation into "


@dataclass(slots=True)
class Pool:
    """Answers of one recipe under one condition, in all languages."""

    size: int = 0
    spoken: list[AnswerFidelity] = field(default_factory=list)
    translated: list[tuple[str, AnswerFidelity]] = field(default_factory=list)
    """With the language translated into."""

    def add(self, report: Report) -> None:
        """Take the answers of one run over."""
        self.size = report.size
        for task in report.tasks:
            if task.title.startswith(TRANSLATION):
                self.translated += self._translations(task)
            else:
                self.spoken += task.answers

    def _translations(self, task: TaskFidelity) -> Iterator[tuple[str, AnswerFidelity]]:
        return ((task.title.removeprefix(TRANSLATION), answer) for answer in task.answers)

    def word_error_rate(self, *, of_checkpoint: bool) -> float:
        """Of transcripts, in percent."""
        found = [answer.reference_answer if of_checkpoint else answer.answer for answer in self.spoken]
        return 100 * float(jiwer.wer([answer.text or "" for answer in self.spoken], found))

    def chrf(self, *, of_checkpoint: bool) -> float:
        """Of translations."""
        found, expected = [], []
        for language, answer in self.translated:
            found.append(_translation(answer.reference_answer if of_checkpoint else answer.answer, language))
            expected.append(_translation(answer.text or "", language))
        return float(sacrebleu.corpus_chrf(found, [expected]).score)

    def row(self, recipe: str, condition: str) -> str:
        """Of the Markdown table."""
        answers = [*self.spoken, *(answer for _, answer in self.translated)]
        wer, wer_before = self.word_error_rate(of_checkpoint=False), self.word_error_rate(of_checkpoint=True)
        chrf, chrf_before = self.chrf(of_checkpoint=False), self.chrf(of_checkpoint=True)
        same = np.mean([answer.answer == answer.reference_answer for answer in answers])
        return (
            f"| {recipe} | {self.size / 1e6:.1f} | {condition} | {np.mean([a.divergence for a in answers]):.2g} "
            f"| {np.mean([a.same_top_token for a in answers]):.2%} | {wer:.2f} ({wer - wer_before:+.2f}) "
            f"| {chrf:.2f} ({chrf - chrf_before:+.2f}) | {same:.1%} |"
        )


def _translation(answer: str, language: str) -> str:
    return split_translation(answer, PROMPTS, language)[1]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--utterances", type=int, default=40, help="per condition and spoken language (default: %(default)s)"
    )
    parser.add_argument("--recipes", nargs="+", choices=sorted(RECIPES), default=list(RECIPES), help="(default: all)")
    parser.add_argument("--checkpoint", type=Path, default=TINY, help="(default: models/tiny)")
    arguments = parser.parse_args()
    checkpoint: Path = arguments.checkpoint
    print("| recipe | size MB | condition | KL | same top token | WER % (change) | chrF (change) | same answer |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        calibration = Calibration(list(_data(TRAINING, CALIBRATION_UTTERANCES, folder / "calibration")), Silence())
        packages = []
        for name in arguments.recipes:
            settings = ConversionSettings(RECIPES[name], calibration=calibration)
            packages.append(convert_onnx(checkpoint, folder / name, settings).folder)
        for condition in TESTS:
            pools = {name: Pool() for name in arguments.recipes}
            for data in _data(condition, arguments.utterances, folder / condition.name):
                for name, report in zip(
                    arguments.recipes, verify_packages(packages, checkpoint, Silence(), data), strict=True
                ):
                    pools[name].add(report)
            for name, pool in pools.items():
                print(pool.row(name, condition.name), flush=True)
    return 0


def _data(condition: Condition, count: int, folder: Path) -> Iterator[EvaluationData]:
    """By spoken language."""
    for language in condition.accents:
        (folder / language).mkdir(parents=True)
        examples = tuple(_speak(condition, count, language, folder / language))
        yield EvaluationData(LANGUAGE_NAMES[language], examples, ())


def _speak(condition: Condition, count: int, language: str, folder: Path) -> Iterator[SpokenExample]:
    others: Sequence[str] = [code for code in LANGUAGES if code != language]
    for number, utterance in enumerate(distinct_utterances(condition, count, language)):
        path = folder / f"{number:04}.wav"
        soundfile.write(path, utterance.waveform, SAMPLE_RATE, subtype="PCM_16")
        written, target = utterance.sentence.written, others[number % len(others)]
        yield SpokenExample(path, written[language], (Translation(LANGUAGE_NAMES[target], written[target]),))


if __name__ == "__main__":
    sys.exit(main())
