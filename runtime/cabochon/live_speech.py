"""Speech while it is spoken: parts as they end, and a first guess at what is still going on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cabochon.arrays import Float32Array
from cabochon.errors import AudioError
from cabochon.long_speech import SpokenPart, spoken_part
from cabochon.microphone import Recording
from cabochon.pipeline import Answer
from cabochon.segmentation import Segment, Segmenter

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


def listen(
    recording: Recording,
    segmenter: Segmenter,
    hear: Callable[[Float32Array], Answer],
    sample_rate: int,
    *,
    guess: bool = True,
) -> Iterator[Pending | Confirmed | Lost]:
    """What is said into a microphone, until the recording ends.

    Args:
        recording: begun.
        segmenter: cuts at pauses.
        hear: asks the model about float32 [samples].
        sample_rate: of all of them.
        guess: whether to try what is still being spoken.
    """
    heard, next_guess = 0, 0.0
    for block in recording:
        heard += len(block)
        if lost := recording.lost_seconds():
            yield Lost(lost)
        for segment in segmenter.push(block):
            yield from _answer(segment, hear, sample_rate, recording, heard)
        pending = segmenter.pending
        if guess and pending and recording.waiting_seconds < CAUGHT_UP and time.monotonic() >= next_guess:
            began = time.monotonic()
            if text := _try(pending, hear):
                yield Pending(text)
            ended = time.monotonic()
            next_guess = ended + max(BETWEEN_GUESSES, 2 * (ended - began))
    for segment in segmenter.finish():
        yield from _answer(segment, hear, sample_rate, recording, heard)


def _answer(
    segment: Segment, hear: Callable[[Float32Array], Answer], sample_rate: int, recording: Recording, heard: int
) -> Iterator[Pending | Confirmed]:
    began, waited = time.monotonic(), recording.waiting_seconds
    answer = hear(segment.waveform)
    for _ in answer:
        yield Pending(answer.text)
    part = spoken_part(segment, answer, sample_rate)
    delay = (heard - segment.end) / sample_rate + waited + time.monotonic() - began
    yield Confirmed(part, delay)


def _try(segment: Segment, hear: Callable[[Float32Array], Answer]) -> str:
    """What an unfinished segment says; nothing where it is too short to be heard."""
    try:
        return hear(segment.waveform).finish().strip()
    except AudioError:
        return ""
