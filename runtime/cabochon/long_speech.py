"""Speech of any length: cut at its pauses, then answered segment by segment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cabochon.answer import Answer, Translation
from cabochon.arrays import Float32Array
from cabochon.audio_model import AudioModel
from cabochon.hearing import SoundSource, check_waveform
from cabochon.pipeline import Model
from cabochon.prompt import transcription_instruction, translation_instruction
from cabochon.segmentation import Segment, Segmentation, Segmenter
from cabochon.voice_activity import SileroDetector
from cabochon.wav import SoundFile

_BLOCK_SAMPLES = 160_000
LONGEST_SECONDS = 1e9
"""Of a sound, 30 years: what a file says beyond is no time."""


@dataclass(frozen=True, slots=True)
class SpokenPart:
    """What was said from one pause to another."""

    start: float
    """Seconds from the beginning of the sound."""
    end: float
    transcript: str
    translation: str = ""
    complete: bool = True
    """False where the answer was cut at the longest length allowed."""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= LONGEST_SECONDS:
            raise ValueError(f"a part lasts from {self.start} s to {self.end} s")


class LongSpeech:
    """The parts of a long sound: iterate over it to get them one by one, as they are understood."""

    def __init__(
        self, segments: Iterator[Segment], hear: Callable[[Float32Array], Answer], sample_rate: int,
        seconds: float, note: str,
    ) -> None:  # fmt: skip
        self._segments = segments
        self._hear = hear
        self._sample_rate = sample_rate
        self.seconds = seconds
        """Length of the whole sound."""
        self.note = note
        """One sentence about how the sound file was converted; empty when it was not."""

    def __iter__(self) -> Iterator[SpokenPart]:
        return self

    def __next__(self) -> SpokenPart:
        segment = next(self._segments)
        return spoken_part(segment, self._hear(segment.waveform), self._sample_rate)


def spoken_part(segment: Segment, answer: Answer, sample_rate: int) -> SpokenPart:
    """Wait for the answer to a segment."""
    return part_of(answer, segment.start / sample_rate, segment.end / sample_rate)


def part_of(answer: Answer, start: float, end: float) -> SpokenPart:
    """Wait for the answer to what was said from one time to another, in seconds."""
    text = answer.finish()
    transcript, translation = text.strip(), ""
    if isinstance(answer, Translation):
        transcript, translation = answer.transcript, answer.translation
    return SpokenPart(start, end, transcript, translation, answer.statistics.complete)


def transcribe_long(
    model: Model,
    sound: SoundSource,
    language: str | None = None,
    *,
    segmentation: Segmentation | None = None,
    start: float = 0.0,
    max_tokens: int = 1024,
) -> LongSpeech:
    """What is said in a sound of any length, part by part.

    Args:
        sound: a file, or a mono waveform float32 [samples] at the model's sample rate.
        language: English name or code; None when it is not known.
        segmentation: where to cut.
        start: seconds to leave out, to go on where an earlier call stopped.
        max_tokens: longest answer to one part.

    Raises:
        AudioError: the sound cannot be read.
        RequestError: the package does not hear.
        MissingDependencyError: the voice detector is not installed.
    """
    transcription_instruction(model.package.manifest.prompts, language)  # refuses a language before minutes of work
    return _understand(model, sound, lambda part: model.transcribe(part, language, max_tokens), segmentation, start)


def translate_long(
    model: Model,
    sound: SoundSource,
    *,
    source: str,
    target: str,
    segmentation: Segmentation | None = None,
    start: float = 0.0,
    max_tokens: int = 1024,
) -> LongSpeech:
    """Transcripts and translations of a sound of any length, part by part; see `transcribe_long`."""
    translation_instruction(model.package.manifest.prompts, source, target)

    def hear(part: Float32Array) -> Answer:
        return model.translate(part, source=source, target=target, max_tokens=max_tokens)

    return _understand(model, sound, hear, segmentation, start)


def start_segmenter(audio: AudioModel, segmentation: Segmentation | None = None, start: int = 0) -> Segmenter:
    """What cuts the speech that a model is to hear, with a voice detector of its own.

    Args:
        audio: what the model hears.
        segmentation: where to cut.
        start: sample of the sound at which it begins to hear.

    Raises:
        RequestError: the model's sample rate is none that the detector takes.
        MissingDependencyError: the voice detector is not installed.
    """
    detector = SileroDetector(audio.sample_rate)
    return Segmenter(detector, audio.sample_rate, audio.max_samples, segmentation or Segmentation(), start)


def _understand(
    model: Model,
    sound: SoundSource,
    hear: Callable[[Float32Array], Answer],
    segmentation: Segmentation | None,
    start: float,
) -> LongSpeech:
    audio = model.audio_model
    rate, first = audio.sample_rate, round(start * audio.sample_rate)
    segmenter = start_segmenter(audio, segmentation, first)
    if isinstance(sound, str | os.PathLike):
        file = SoundFile(Path(sound), rate)
        blocks, seconds, note = file.blocks(first), file.seconds, file.note
    else:
        waveform = check_waveform(sound)
        blocks = (waveform[at : at + _BLOCK_SAMPLES] for at in range(first, len(waveform), _BLOCK_SAMPLES))
        seconds, note = len(waveform) / rate, ""
    return LongSpeech(_segments(blocks, segmenter), hear, rate, seconds, note)


def _segments(blocks: Iterable[Float32Array], segmenter: Segmenter) -> Iterator[Segment]:
    for block in blocks:
        yield from segmenter.push(block)
    yield from segmenter.finish()
