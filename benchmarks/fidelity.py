"""What each recipe does to the small model's transcripts: a table of recipe × held-out condition.

python benchmarks/fidelity.py [--utterances 100]

Needs espeak-ng and the extra `train`. The sentences, voices and accents are those of models/tiny's own evaluation.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import soundfile

from cabochon_convert.convert import ConversionSettings, convert_onnx
from cabochon_convert.evaluation_data import EvaluationData, SpokenExample
from cabochon_convert.progress import Silence
from cabochon_convert.recipes import RECIPES
from cabochon_convert.verify import verify_packages

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = REPOSITORY / "models" / "tiny"
sys.path.insert(0, str(REPOSITORY))

from models.tiny.training.speech import SAMPLE_RATE, TESTS, Condition, distinct_utterances  # noqa: E402


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=100, help="per condition (default: %(default)s)")
    count = parser.parse_args().utterances
    print("| recipe | size MB | unseen sentences in | divergence | same top token | WER % | chrF | same answer |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        packages = [
            convert_onnx(TINY, Path(folder) / recipe.name, ConversionSettings(recipe)).folder
            for recipe in RECIPES.values()
        ]
        for index, condition in enumerate(TESTS):
            examples = tuple(_speak(condition, count, Path(folder) / str(index)))
            _print_rows(packages, condition.name, examples)
    return 0


def _print_rows(packages: Sequence[Path], condition: str, examples: tuple[SpokenExample, ...]) -> None:
    for report in verify_packages(packages, TINY, Silence(), EvaluationData("English", examples, ())):
        (found,) = report.tasks
        assert found.rates is not None  # every example says what is spoken
        print(
            f"| {report.recipe} | {report.size / 1e6:.1f} | {condition} | {found.divergence:.2g} "
            f"| {found.same_top_token:.2%} | {found.rates.word_error_rate:.2f} (checkpoint "
            f"{found.rates.reference_word_error_rate:.2f}) | {found.rates.chrf:.1f} ({found.rates.reference_chrf:.1f}) "
            f"| {found.same_answers} of {len(examples)} |",
            flush=True,
        )


def _speak(condition: Condition, count: int, folder: Path) -> Iterator[SpokenExample]:
    folder.mkdir()
    for number, utterance in enumerate(distinct_utterances(condition, count)):
        path = folder / f"{number:04}.wav"
        soundfile.write(path, utterance.waveform, SAMPLE_RATE, subtype="PCM_16")
        yield SpokenExample(path, utterance.sentence.written["en"])


if __name__ == "__main__":
    sys.exit(main())
