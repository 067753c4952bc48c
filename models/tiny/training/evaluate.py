"""Measures a saved checkpoint through plain transformers on sentences that were held out from training.

Three conditions, each of distinct sentences: voices heard in training, unheard voices, unheard accents and voices. The
transcription and the translation of every utterance are asked for, greedily. Word error rates are strict: capitals,
digits and punctuation count. Writes evaluation.json into the checkpoint's folder and prints a table.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import jiwer
import numpy as np
import sacrebleu

from .prompts import prompt, translation_answer
from .recognizer import Recognizer
from .speech import TESTS, Condition, Float32Array, Utterance, distinct_utterances

_CHECKPOINT: Final = Path(__file__).resolve().parents[1]
_SPOKEN: Final = "en"
_TARGET: Final = "de"
_BATCH_SIZE: Final = 16
_MISTAKES_KEPT: Final = 5


@dataclass(frozen=True, slots=True)
class Figures:
    """What one condition gives; rates and shares in percent."""

    condition: str
    utterances: int
    transcription_wer: float
    transcription_exact: float
    translation_chrf: float
    translation_bleu: float
    translation_exact: float
    """The whole answer, transcription and translation."""
    mistakes: list[dict[str, str]]
    """The first few wrong answers."""


def as_stored(waveform: Float32Array) -> Float32Array:
    """Rounded to 16 bits, as a WAV file would hold it."""
    return (np.round(waveform * 32767) / 32768).astype(np.float32)


def _all_answers(recognizer: Recognizer, utterances: Sequence[Utterance], target: str) -> Iterator[str]:
    for first in range(0, len(utterances), _BATCH_SIZE):
        waveforms = [as_stored(utterance.waveform) for utterance in utterances[first : first + _BATCH_SIZE]]
        yield from recognizer.answers(waveforms, prompt(_SPOKEN, target))
        print(f"{min(first + _BATCH_SIZE, len(utterances))}/{len(utterances)} {target}", file=sys.stderr, flush=True)


def _percent_equal(expected: Sequence[str], actual: Sequence[str]) -> float:
    return 100 * sum(left == right for left, right in zip(expected, actual, strict=True)) / len(expected)


def _translation_part(answer: str) -> str:
    """What follows "German: " in an answer; empty where the answer has no such line."""
    return answer.partition("\n")[2].partition(": ")[2]


def measure(recognizer: Recognizer, condition: Condition, count: int) -> Figures:
    """Both tasks on the first `count` distinct sentences of the condition."""
    utterances = list(distinct_utterances(condition, count, _SPOKEN))
    transcriptions = [utterance.sentence.written[_SPOKEN] for utterance in utterances]
    translations = [utterance.sentence.written[_TARGET] for utterance in utterances]
    pairs = [translation_answer(said, meant, _TARGET) for said, meant in zip(transcriptions, translations, strict=True)]
    heard = list(_all_answers(recognizer, utterances, _SPOKEN))
    translated = list(_all_answers(recognizer, utterances, _TARGET))
    meanings = [_translation_part(answer) for answer in translated]
    mistakes = [
        {"voice": utterance.voice, "expected": expected, "answer": answer}
        for utterance, expected, answer in zip(utterances * 2, transcriptions + pairs, heard + translated, strict=True)
        if expected != answer
    ]
    return Figures(
        condition=condition.name,
        utterances=count,
        transcription_wer=round(100 * jiwer.wer(transcriptions, heard), 2),
        transcription_exact=round(_percent_equal(transcriptions, heard), 1),
        translation_chrf=round(sacrebleu.corpus_chrf(meanings, [translations]).score, 1),
        translation_bleu=round(sacrebleu.corpus_bleu(meanings, [translations]).score, 1),
        translation_exact=round(_percent_equal(pairs, translated), 1),
        mistakes=mistakes[:_MISTAKES_KEPT],
    )


def table(figures: Sequence[Figures]) -> str:
    """A Markdown table, one condition per row."""
    lines = [
        "| unseen sentences in | utterances | WER % | exact % | translation chrF | BLEU | whole answer exact % |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.condition} | {row.utterances} | {row.transcription_wer} | {row.transcription_exact} "
        f"| {row.translation_chrf} | {row.translation_bleu} | {row.translation_exact} |"
        for row in figures
    ]
    return "\n".join(lines)


def surroundings() -> dict[str, Any]:
    """What the figures depend on besides checkpoint and code."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "jiwer", "sacrebleu")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=_CHECKPOINT, help="folder (%(default)s)")
    parser.add_argument("--utterances", type=int, default=200, help="per condition (%(default)s)")
    arguments = parser.parse_args()
    recognizer = Recognizer(arguments.checkpoint)
    begin = time.monotonic()
    figures = [measure(recognizer, condition, arguments.utterances) for condition in TESTS]
    report = {
        **surroundings(),
        "seconds": round(time.monotonic() - begin),
        "conditions": [asdict(row) for row in figures],
    }
    (arguments.checkpoint / "evaluation.json").write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n")
    print(table(figures))


if __name__ == "__main__":
    main()
