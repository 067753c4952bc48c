"""A sound of any length, cut at its pauses into segments that the model can take."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.errors import RequestError
from cabochon.voice_activity import VoiceDetector

ONSET, RELEASE = 0.5, 0.35
"""Probabilities at which speech begins, and below which it pauses: https://github.com/snakers4/silero-vad."""
SHORTEST_SPEECH = 0.09
"""Seconds; what is shorter is a click."""
SHORTEST_PAUSE = 0.1
"""Seconds, between words: enough to cut at where a segment would become too long."""

DIGITAL_SILENCE = 2.0**-15
"""Below the smallest step of 16 bits: what edited and gated sounds have in their pauses, and no microphone gives."""


@dataclass(frozen=True, slots=True)
class Segmentation:
    """Where to cut; all in seconds."""

    pause: float = 0.6
    """Silence that ends a segment. In the second half of the longest segment shorter ones do as well, to
    `SHORTEST_PAUSE` at its end; speech without any is cut where it is faintest."""
    margin: float = 0.15
    """Silence that is kept before and after speech, as far as it is what a microphone hears: models were not trained
    with digital silence."""
    longest: float = 30.0
    """Of a segment; never more than the model takes."""

    def __post_init__(self) -> None:
        if not SHORTEST_PAUSE <= self.pause <= 10:
            raise RequestError(f"a pause of {self.pause:g} s was asked for, expected {SHORTEST_PAUSE:g} to 10.")
        if not 0 <= self.margin <= 1:
            raise RequestError(f"a margin of {self.margin:g} s was asked for, expected 0 to 1.")
        if not 2 <= self.longest <= 3600:
            raise RequestError(f"segments of at most {self.longest:g} s were asked for, expected 2 to 3600.")


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a sound in which somebody speaks."""

    start: int
    """Its first sample in the sound."""
    waveform: Float32Array
    """float32 [samples]"""

    @property
    def end(self) -> int:
        """The sample behind its last one."""
        return self.start + len(self.waveform)


class Segmenter:
    """Takes a sound block by block and gives its segments as soon as they end; keeps no more than the longest one."""

    def __init__(
        self, detector: VoiceDetector, sample_rate: int, max_samples: int, settings: Segmentation, start: int = 0
    ) -> None:
        """Args: sample_rate and max_samples: of the model; start: sample of the sound at which it begins to hear."""
        self._detector = detector
        self._offset = start
        self._samples = detector.frame_samples
        frames_per_second = sample_rate / self._samples
        self._pause = round(settings.pause * frames_per_second)
        self._shortest_pause = max(1, round(SHORTEST_PAUSE * frames_per_second))
        self._margin = round(settings.margin * frames_per_second)
        self._longest = min(int(settings.longest * frames_per_second), max_samples // self._samples)
        self._least_voiced = max(1, round(SHORTEST_SPEECH * frames_per_second))
        self._rest = np.zeros(0, np.float32)
        self._position = 0
        """Frames that were heard."""
        self._kept: deque[tuple[Float32Array, float]] = deque()
        """The last of them: the margin before speech, or the segment that has begun; with their probabilities."""
        self._speaking = False
        self._voiced_end = 0
        """Behind the last frame with speech."""

    @property
    def speaking(self) -> bool:
        """Whether a segment has begun and not ended yet."""
        return self._speaking

    @property
    def pending(self) -> Segment | None:
        """What there is so far of the segment that has begun."""
        return self._segment(len(self._kept)) if self._speaking else None

    @property
    def pending_start(self) -> int:
        """The first sample of the segment that has begun."""
        return self._offset + (self._position - len(self._kept)) * self._samples

    @property
    def certain_end(self) -> int:
        """The sample up to which the segment that has begun goes, unless it becomes too long; 0 without one."""
        if not self._speaking:
            return 0
        return self.pending_start + self._length_with_margin() * self._samples

    def heard(self, start: int, end: int) -> Float32Array:
        """Samples of the segment that has begun: float32 [end - start]; both are a multiple of its frames away."""
        first = self.pending_start
        rows = range((start - first) // self._samples, (end - first) // self._samples)
        return np.concatenate([np.zeros(0, np.float32), *(self._kept[row][0] for row in rows)])

    def push(self, samples: Float32Array) -> list[Segment]:
        """Hear the next samples [any number]; returns the segments that ended."""
        waveform = np.concatenate([self._rest, samples.astype(np.float32)])
        whole = len(waveform) - len(waveform) % self._samples
        self._rest = waveform[whole:]
        frames = waveform[:whole].reshape(-1, self._samples)
        return [segment for frame in frames if (segment := self._hear(frame)) is not None]

    def finish(self) -> list[Segment]:
        """The sound has ended: the last segment, if one has begun."""
        last, segments = len(self._rest), []
        if last:
            segments = self.push(np.zeros(self._samples - last, np.float32))
        if self._speaking:
            segments += self._end(self._length_with_margin())
        if last and segments and segments[-1].end == self._offset + self._position * self._samples:
            # Without what was added to fill the last frame.
            segments[-1] = Segment(segments[-1].start, segments[-1].waveform[: last - self._samples])
        return segments

    @property
    def _first_unvoiced(self) -> int:
        """Behind the last frame with speech, counted from the first that is kept."""
        return self._voiced_end - (self._position - len(self._kept))

    def _length_with_margin(self) -> int:
        """Frames that are kept, up to the margin behind the last one with speech."""
        length = min(len(self._kept), self._first_unvoiced + self._margin)
        while length > self._first_unvoiced and _is_digital_silence(self._kept[length - 1][0]):
            length -= 1
        return length

    def _hear(self, frame: Float32Array) -> Segment | None:
        probability = self._detector.probability(frame)
        self._kept.append((frame, probability))
        self._position += 1
        if probability >= (RELEASE if self._speaking else ONSET):
            if not self._speaking:
                self._drop_digital_silence()
            self._speaking, self._voiced_end = True, self._position
        if not self._speaking:
            self._drop(len(self._kept) - self._margin)
            return None
        length = len(self._kept)
        if self._position - self._voiced_end >= self._ending_pause(length):
            ended = self._end(self._length_with_margin())
            return ended[0] if ended else None
        return self._cut() if length >= self._longest else None

    def _ending_pause(self, length: int) -> int:
        """Frames of silence that end a segment of so many frames."""
        half = self._longest / 2
        beyond = max(0.0, (length - half) / half)
        return max(self._shortest_pause, round(self._pause - beyond * (self._pause - self._shortest_pause)))

    def _end(self, length: int) -> list[Segment]:
        """End the segment after so many frames, and go on without speech; nothing where it was a click."""
        voiced = sum(probability >= RELEASE for _, probability in self._kept)
        segments = [self._segment(length)] if voiced >= self._least_voiced else []
        self._drop(length)
        self._speaking = False
        self._drop(len(self._kept) - self._margin)
        return segments

    def _cut(self) -> Segment:
        """Where the second half of the longest segment is faintest; what follows is the beginning of the next one."""
        probabilities = np.array([probability for _, probability in self._kept])
        width = self._shortest_pause
        faintness = np.convolve(probabilities, np.ones(width) / width, "valid")
        first = self._longest // 2
        at = first + int(np.argmin(faintness[first:])) + width // 2
        segment = self._segment(at)
        self._drop(at)
        self._speaking = self._first_unvoiced > 0
        return segment

    def _segment(self, length: int) -> Segment:
        start = self.pending_start
        frames = [frame for (frame, _), _ in zip(self._kept, range(length), strict=False)]
        return Segment(start, np.concatenate(frames))

    def _drop_digital_silence(self) -> None:
        """At the front of the margin before the frame in which speech begins."""
        while len(self._kept) > 1 and _is_digital_silence(self._kept[0][0]):
            self._drop(1)

    def _drop(self, length: int) -> None:
        for _ in range(length):
            self._kept.popleft()


def _is_digital_silence(frame: Float32Array) -> bool:
    return bool(np.abs(frame).max() < DIGITAL_SILENCE)
