"""Measures a saved checkpoint through plain transformers on sentences that were held out from training.

Four conditions, each with distinct sentences, as many in every spoken language: voices heard in training, unheard
voices, unheard accents (and voices), an unheard synthesizer. The transcription and all translations of every utterance
are asked for, greedily, and typed sentences are translated too. Word error rates are strict: capitals, digits and
punctuation count. Writes evaluation.json into the checkpoint's folder, after every language, and prints a table.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import platform
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import jiwer
import numpy as np
import sacrebleu

from .dialogues import translation_request
from .phrasebook import draw
from .prompts import prompt, translation_answer
from .recognizer import Recognizer
from .speech import distinct_utterances
from .voices import TESTS, Condition, Float32Array
from .words import LANGUAGES

_CHECKPOINT: Final = Path(__file__).resolve().parents[1]
_BATCH_SIZE: Final = 32
_MISTAKES_KEPT: Final = 2
_TYPED_SEED: Final = 910
TYPED: Final = "typed sentences"


@dataclass(frozen=True, slots=True)
class Figures:
    """What one condition gives for one pair of languages; rates and shares in percent."""

    condition: str
    source: str
    target: str
    """The same as the source: transcription."""
    utterances: int
    wer: float
    """Of the transcription, or of the transcript line of a translation."""
    chrf: float
    """Of the transcription or translation."""
    bleu: float
    exact: float
    """The whole answer, a translation's transcript included."""
    mistakes: list[dict[str, str]]
    """The first few wrong answers."""


def as_stored(waveform: Float32Array) -> Float32Array:
    """Rounded to 16 bits, as a WAV file would hold it."""
    return (np.round(waveform * 32767) / 32768).astype(np.float32)


def _split_answer(answer: str) -> tuple[str, str]:
    """The transcript, and what follows "German: "; empty where the answer has no such line."""
    first, _, rest = answer.partition("\n")
    return first, rest.partition(": ")[2]


def _figures(
    condition: str, source: str, target: str, said: Sequence[str], meant: Sequence[str], answers: Sequence[str]
) -> Figures:
    """`said` is empty where nothing was spoken."""
    if not said:
        expected, heard, meanings = list(meant), list(answers), list(answers)
    elif source == target:
        expected, heard, meanings = list(said), list(answers), list(answers)
    else:
        expected = [translation_answer(*pair, target) for pair in zip(said, meant, strict=True)]
        heard, meanings = map(list, zip(*map(_split_answer, answers), strict=True))
    wrong = [pair for pair in zip(expected, answers, strict=True) if pair[0] != pair[1]]
    return Figures(
        condition=condition,
        source=source,
        target=target,
        utterances=len(answers),
        wer=round(100 * jiwer.wer(list(said or meant), heard), 2),
        chrf=round(sacrebleu.corpus_chrf(meanings, [list(meant)]).score, 2),
        bleu=round(sacrebleu.corpus_bleu(meanings, [list(meant)]).score, 2),
        exact=round(100 * (1 - len(wrong) / len(answers)), 2),
        mistakes=[{"expected": expected, "answer": answer} for expected, answer in wrong[:_MISTAKES_KEPT]],
    )


def measure(recognizer: Recognizer, condition: Condition, source: str, count: int) -> list[Figures]:
    """All tasks on the first `count` distinct sentences of the condition in one spoken language."""
    utterances = sorted(distinct_utterances(condition, count, source), key=lambda spoken: len(spoken.waveform))
    said = [utterance.sentence.written[source] for utterance in utterances]
    found = []
    for target in LANGUAGES:
        answers: list[str] = []
        for first in range(0, count, _BATCH_SIZE):
            waveforms = [as_stored(utterance.waveform) for utterance in utterances[first : first + _BATCH_SIZE]]
            answers += recognizer.answers(waveforms, prompt(source, target))
        meant = [utterance.sentence.written[target] for utterance in utterances]
        found.append(_figures(condition.name, source, target, said, meant, answers))
        print(f"{condition.name}: {source} to {target}, {found[-1]}", file=sys.stderr, flush=True)
    return found


def measure_typed(recognizer: Recognizer, count: int) -> list[Figures]:
    """Translations of typed held-out sentences."""
    found = []
    for source in LANGUAGES:
        for target in LANGUAGES:
            if source == target:
                continue
            generator = random.Random(f"{_TYPED_SEED} {source} {target}")
            sentences = [draw(generator, held_out=True).written for _ in range(count)]
            answers: list[str] = []
            for first in range(0, count, _BATCH_SIZE):
                texts = [sentence[source] for sentence in sentences[first : first + _BATCH_SIZE]]
                answers += recognizer.typed_answers([translation_request(text, source, target) for text in texts])
            found.append(_figures(TYPED, source, target, [], [sentence[target] for sentence in sentences], answers))
    return found


def table(figures: Sequence[Figures]) -> str:
    """Markdown: one row per condition and spoken language, transcription first, then chrF by target language."""
    lines = [
        "| condition | spoken | WER % | exact % | chrF into en | de | fr | es | BLEU (mean) | exact % (mean) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for condition in dict.fromkeys(row.condition for row in figures):
        for source in LANGUAGES:
            rows = {row.target: row for row in figures if (row.condition, row.source) == (condition, source)}
            if not rows:
                continue
            translations = [row for row in rows.values() if row.target != source]
            heard = rows.get(source)
            cells = [f"{rows[code].chrf:.1f}" if code in rows and code != source else "" for code in LANGUAGES]
            bleu, exact = (np.mean([getattr(row, name) for row in translations]) for name in ("bleu", "exact"))
            wer, right = (f"{heard.wer:.2f}", f"{heard.exact:.1f}") if heard else ("", "")
            lines.append(
                f"| {condition} | {source} | {wer} | {right} | {' | '.join(cells)} | {bleu:.1f} | {exact:.1f} |"
            )
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
    parser.add_argument("--utterances", type=int, default=512, help="per condition (%(default)s)")
    parser.add_argument("--output", type=Path, help="instead of evaluation.json in the checkpoint's folder")
    arguments = parser.parse_args()
    output: Path = arguments.output or arguments.checkpoint / "evaluation.json"
    recognizer = Recognizer(arguments.checkpoint)
    begin, rows = time.monotonic(), list[Figures]()
    for condition in TESTS:
        for source in condition.accents:
            rows += measure(recognizer, condition, source, -(-arguments.utterances // len(condition.accents)))
            _write(output, rows, begin)
    rows += measure_typed(recognizer, arguments.utterances // 12)
    _write(output, rows, begin)
    print(table(rows))


def _write(output: Path, rows: Sequence[Figures], begin: float) -> None:
    report = {**surroundings(), "seconds": round(time.monotonic() - begin), "figures": [asdict(row) for row in rows]}
    output.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
