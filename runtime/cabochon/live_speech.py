"""Speech while it is spoken: parts as they end, and a first guess at what is still going on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from cabochon.answer import Answer
from cabochon.arrays import Float32Array
from cabochon.errors import AudioError, RequestError
from cabochon.long_speech import SpokenPart, spoken_part
from cabochon.microphone import Recording
from cabochon.segmentation import Segment, Segmenter
from cabochon.spoken_clip import SpokenClip

BETWEEN_GUESSES = 1.0
"""Seconds; more where a guess takes long, so that no more than a third of the time goes into guesses."""
CAUGHT_UP = 0.5
"""Seconds of sound that may wait while a guess is made."""


@dataclass(frozen=True, slots=True)
class Pending:
    """What the part that is going on, or being answered, says so far; it may change."""

    text: str


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A part that has ended."""

    part: SpokenPart
    delay: float
    """Seconds from the end of its speech to its whole answer."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Sound for which there was no room, because the model is slower than the speech."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask about each part."""

    whole: Callable[[Float32Array], Answer]
    """About float32 [samples]."""
    start: Callable[[], SpokenClip | None] = lambda: None
    """About a part that has just begun; None where the engine takes whole parts only."""
    finish: Callable[[SpokenClip], Answer] | None = None
    """The answer to a part that was started so."""


def listen(
    recording: Recording, segmenter: Segmenter, question: Question, sample_rate: int, *, guess: bool = True
) -> Iterator[Pending | Confirmed | Lost]:
    """What is said into a microphone, until the recording ends.

    Args:
        recording: begun.
        segmenter: cuts at pauses.
        question: to the model.
        sample_rate: of all of them.
        guess: whether to try what is still being spoken.
    """
    part, heard, next_guess = _Part(segmenter, question), 0, 0.0
    for block in recording:
        heard += len(block)
        if lost := recording.lost_seconds():
            yield Lost(lost)
        for segment in segmenter.push(block):
            yield from _answer(segment, part, sample_rate, recording, heard)
        part.follow()
        if guess and segmenter.speaking and recording.waiting_seconds < CAUGHT_UP and time.monotonic() >= next_guess:
            began = time.monotonic()
            if text := part.guess():
                yield Pending(text)
            ended = time.monotonic()
            next_guess = ended + max(BETWEEN_GUESSES, 2 * (ended - began))
    for segment in segmenter.finish():
        yield from _answer(segment, part, sample_rate, recording, heard)


class LiveSpeech:
    """Speech that comes block by block, for whom guesses are no use: parts are answered as they end."""

    def __init__(self, segmenter: Segmenter, question: Question, sample_rate: int) -> None:
        self._segmenter, self._sample_rate = segmenter, sample_rate
        self._part = _Part(segmenter, question)

    def push(self, samples: Float32Array) -> list[SpokenPart]:
        """Hear the next samples, float32 of any number; returns the parts that ended."""
        parts = self._answers(self._segmenter.push(samples))
        self._part.follow()
        return parts

    def finish(self) -> list[SpokenPart]:
        """The speech has ended: the last part, if one has begun."""
        return self._answers(self._segmenter.finish())

    def _answers(self, segments: Iterable[Segment]) -> list[SpokenPart]:
        return [spoken_part(segment, self._part.answer(segment), self._sample_rate) for segment in segments]


class _Part:
    """The part that is going on, which the model hears meanwhile where its engine can."""

    def __init__(self, segmenter: Segmenter, question: Question) -> None:
        self._segmenter, self._question = segmenter, question
        self._clip: SpokenClip | None = None
        self._start = -1
        """Of the part that the clip, or its absence, belongs to."""

    def follow(self) -> None:
        """Let the model hear what certainly belongs to the part."""
        segmenter = self._segmenter
        if not segmenter.speaking:
            return
        if self._start != segmenter.pending_start:
            self._start = segmenter.pending_start
            self._clip = self._question.start()
        if self._clip is None:
            return
        try:
            heard = self._start + self._clip.samples
            if segmenter.certain_end > heard:
                self._clip.push(segmenter.heard(heard, segmenter.certain_end))
        except (AudioError, RequestError):
            # Too long for the model in one piece: the part will be cut.
            self._clip = None

    def guess(self) -> str:
        """What the part says so far; nothing where it is too short to be heard."""
        if self._clip is not None:
            return self._clip.guess()
        pending = self._segmenter.pending
        try:
            return self._question.whole(pending.waveform).finish().strip() if pending else ""
        except AudioError:
            return ""

    def answer(self, segment: Segment) -> Answer:
        """To the part that has ended."""
        clip, self._clip = self._clip, None
        started, self._start = self._start, -1
        if clip is None or started != segment.start or clip.samples > len(segment.waveform):
            return self._question.whole(segment.waveform)
        assert self._question.finish is not None  # what starts clips ends them
        try:
            clip.push(segment.waveform[clip.samples :])
            return self._question.finish(clip)
        except RequestError:
            # The model was asked something else meanwhile.
            return self._question.whole(segment.waveform)


def _answer(
    segment: Segment, part: _Part, sample_rate: int, recording: Recording, heard: int
) -> Iterator[Pending | Confirmed]:
    began, waited = time.monotonic(), recording.waiting_seconds
    answer = part.answer(segment)
    for _ in answer:
        yield Pending(answer.text)
    spoken = spoken_part(segment, answer, sample_rate)
    delay = (heard - segment.end) / sample_rate + waited + time.monotonic() - began
    yield Confirmed(spoken, delay)
