"""What the checkpoint answers, kept until every package was held against it.

The reference runs once and makes room before the first package is loaded. Its logits (a megabyte a position in E2B) lie
in a file without a name, which vanishes with this process however it ends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.manifest import Sampling
from cabochon_convert.layers_onnx import LayerOutputs
from cabochon_convert.made_up_images import MadeUpImage
from cabochon_convert.questions import Prompt, Question
from cabochon_convert.reference import ReferenceModel
from cabochon_convert.work_folder import OutputError

GREEDY_TOKENS = 24
"""Of the continuation of a probe."""


@dataclass(frozen=True, slots=True)
class ProbeRecord:
    """A prompt that is compared at every position."""

    prompt: Prompt
    audio_embeddings: Float32Array | None
    """[tokens, hidden]"""
    greedy: tuple[int, ...]
    logits: int
    """Where they lie in the store."""


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """The checkpoint's answer to a question."""

    question: Question
    greedy: tuple[int, ...]
    """Its own answer."""
    scored: tuple[int, ...]
    """Tokens whose predictions are compared: the true answer's, or else its own."""
    logits: int
    """Where the logits that predict them lie in the store."""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image, and what the checkpoint makes of it."""

    image: MadeUpImage
    embeddings: Float32Array
    """[tokens, hidden]"""


@dataclass(frozen=True, slots=True)
class ReferenceRecord:
    """Everything that packages are held against."""

    probes: tuple[ProbeRecord, ...]
    answers: tuple[AnswerRecord, ...]
    layer_prompt: Prompt
    layers: LayerOutputs
    images: tuple[ImageRecord, ...] = ()


class LogitStore:
    """Logits on disk; use it as a context manager.

    Args:
        folder: on whose disk.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed when the block ends
        except OSError as error:
            raise OutputError(f"{folder} cannot be written ({error.strerror}).") from None
        self._places: list[tuple[int, tuple[int, ...]]] = []

    def __enter__(self) -> LogitStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, logits: Float32Array) -> int:
        """Keep logits [positions, vocabulary]; returns where they lie."""
        try:
            offset = self._file.seek(0, 2)
            self._file.write(np.ascontiguousarray(logits).data)
            self._file.flush()
        except OSError as error:
            raise OutputError(
                f"the logits of the reference cannot be kept ({error.strerror}): free some space beside the package, "
                "or verify on less data."
            ) from None
        self._places.append((offset, logits.shape))
        return len(self._places) - 1

    def get(self, place: int) -> Float32Array:
        """Logits that were kept: [positions, vocabulary], mapped."""
        offset, shape = self._places[place]
        return np.memmap(self._file, np.float32, "r", offset, shape)


def record_reference(
    reference: ReferenceModel,
    clips: Sequence[Float32Array],
    probes: Sequence[Prompt],
    questions: Sequence[Question],
    sampling: Sampling,
    store: LogitStore,
) -> ReferenceRecord:
    """Ask the checkpoint everything.

    Args:
        reference: the checkpoint.
        clips: frames of the sounds of the first probes.
        probes: prompts compared at every position.
        questions: answered in full.
        sampling: for stop tokens and tokens that are never chosen.
        store: takes the logits.
    """
    embeddings = [*reference.audio_embeddings(clips), *[None] * (len(probes) - len(clips))]
    counts = [GREEDY_TOKENS] * len(probes)
    continued = reference.greedy(probes, counts, sampling.suppress_tokens)
    asked, limits = [question.prompt for question in questions], [question.max_tokens for question in questions]
    answers = reference.greedy(asked, limits, sampling.suppress_tokens, sampling.stop_tokens)
    # An answer of nothing but the end is still a prediction to compare.
    scored = [
        question.tokens or tuple(answer) or sampling.stop_tokens[:1]
        for question, answer in zip(questions, answers, strict=True)
    ]
    # Position i predicts token i + 1, so the last token predicts nothing and the prompt's last position the first one.
    forced = [
        Prompt((*prompt.tokens, *tokens[:-1]), prompt.frames) for prompt, tokens in zip(asked, scored, strict=True)
    ]
    keep = [len(probe.tokens) for probe in probes] + [len(tokens) for tokens in scored]
    places = {index: store.add(logits) for index, logits in reference.logits([*probes, *forced], keep)}
    layer_prompt = next((prompt for prompt in (*asked, *probes[-2:]) if prompt.frames is not None), probes[-1])
    return ReferenceRecord(
        probes=tuple(
            ProbeRecord(probe, embeddings[index], tuple(continued[index]), places[index])
            for index, probe in enumerate(probes)
        ),
        answers=tuple(
            AnswerRecord(question, tuple(answers[index]), scored[index], places[len(probes) + index])
            for index, question in enumerate(questions)
        ),
        layer_prompt=layer_prompt,
        layers=reference.layer_outputs(layer_prompt),
    )
