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

from cabochon.package import open_package
from cabochon_convert.convert import ConversionSettings, convert_onnx
from cabochon_convert.converted import ConvertedModel
from cabochon_convert.fidelity import SpokenExample, measure_speech, summarize
from cabochon_convert.recipes import RECIPES
from cabochon_convert.reference import ReferenceModel

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = REPOSITORY / "models" / "tiny"
sys.path.insert(0, str(REPOSITORY))

from models.tiny.training.speech import SAMPLE_RATE, TESTS, Condition, distinct_utterances  # noqa: E402


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=100, help="per condition (default: %(default)s)")
    count = parser.parse_args().utterances
    reference = ReferenceModel(TINY)
    print("| recipe | size MB | unseen sentences in | divergence | same top token | WER % | chrF | same answer |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        conditions = [
            (condition.name, list(_speak(condition, count, Path(folder) / str(index))))
            for index, condition in enumerate(TESTS)
        ]
        for recipe in RECIPES.values():
            package = convert_onnx(TINY, Path(folder) / recipe.name, ConversionSettings(recipe)).folder
            _print_rows(package, reference, conditions)
    return 0


def _print_rows(
    package: Path, reference: ReferenceModel, conditions: Sequence[tuple[str, list[SpokenExample]]]
) -> None:
    opened = open_package(package)
    converted = ConvertedModel(opened, "onnx")
    for name, examples in conditions:
        found = summarize(list(measure_speech(converted, reference, examples, "English")), "English")
        print(
            f"| {opened.manifest.recipe.name} | {opened.size / 1e6:.1f} | {name} | {found.divergence:.2g} "
            f"| {found.same_top_token:.2%} | {found.word_error_rate:.2f} (checkpoint "
            f"{found.reference_word_error_rate:.2f}) | {found.chrf:.1f} ({found.reference_chrf:.1f}) "
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
