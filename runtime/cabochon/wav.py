"""Reading a sound file into the mono waveform that the model hears."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.errors import AudioError, missing_dependency

# Lengths from here on are placeholders: espeak-ng writes 0x7ffff000, sox and ffmpeg 0x7fffffff or 0xffffffff.
STREAMED_LENGTH = 0x7FFF_0000
_BLOCK_SECONDS = 10
_BLOCK_VALUES = 4_000_000
"""Samples of all channels, of which a file may claim a thousand."""
SAMPLE_RATES = (1000, 384_000)
"""Fewest and most a second: whoever claims others has no speech, but may fill the memory."""


@dataclass(frozen=True, slots=True)
class Sound:
    """A mono waveform and what had to be done to get it."""

    waveform: Float32Array
    """float32 [samples] in [-1, 1]."""
    sample_rate: int
    note: str
    """One sentence about a conversion of the file; empty when there was none."""

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.waveform) / self.sample_rate


def read_sound(path: str | os.PathLike[str], sample_rate: int, max_samples: int) -> Sound:
    """Read a sound file, mix it down to mono and resample it.

    Args:
        path: any format that libsndfile reads: WAV, FLAC, OGG, MP3 …
        sample_rate: samples per second wanted.
        max_samples: longest clip that the model takes, at `sample_rate`; a longer file is refused before it is read.

    Raises:
        AudioError: the file is missing, empty, not a sound, damaged or too long.
    """
    with _opened(path) as file:
        _check_length(Path(path), file.frames, file.samplerate, sample_rate, max_samples)
        note = _note(Path(path), file.samplerate, sample_rate, file.channels, file.subtype)
        mono = np.concatenate([np.zeros(0, np.float32), *_mono_blocks(Path(path), file)])
        if len(mono) == 0:
            raise AudioError(f"{path} holds no samples: expected speech.")
        return Sound(np.clip(resample(mono, file.samplerate, sample_rate), -1.0, 1.0), sample_rate, note)


class SoundFile:
    """A sound of any length, read a few seconds at a time."""

    def __init__(self, path: str | os.PathLike[str], sample_rate: int) -> None:
        """Look at a file.

        Args:
            path: see `read_sound`.
            sample_rate: samples per second wanted.

        Raises:
            AudioError: see `read_sound`; length does not matter.
        """
        self.path = Path(path)
        self._sample_rate = sample_rate
        with _opened(path) as file:
            _check_rate(self.path, file.samplerate)
            self.seconds: float = file.frames / file.samplerate
            self.note = _note(self.path, file.samplerate, sample_rate, file.channels, file.subtype)
            if file.frames == 0:
                raise AudioError(f"{path} holds no samples: expected speech.")

    def blocks(self, start: int = 0) -> Iterator[Float32Array]:
        """Its mono waveform from a sample on, counted at the wanted rate: float32 [samples], some seconds each."""
        with _opened(self.path) as file:
            _check_rate(self.path, file.samplerate)
            file.seek(min(file.frames, round(start * file.samplerate / self._sample_rate)))
            change = _rate_change(file.samplerate, self._sample_rate)
            for mono in _mono_blocks(self.path, file):
                yield np.clip(change(mono, False), -1.0, 1.0)
            yield np.clip(change(np.zeros(0, np.float32), True), -1.0, 1.0)


def _rate_change(found_rate: int, wanted_rate: int) -> Callable[[Float32Array, bool], Float32Array]:
    """Takes the next samples, and whether they are the last ones."""
    if found_rate == wanted_rate:
        return lambda samples, _: samples.astype(np.float32)
    stream = _soxr().ResampleStream(found_rate, wanted_rate, 1, dtype="float32", quality="HQ")
    return lambda samples, is_last: stream.resample_chunk(samples.astype(np.float32), last=is_last)


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """A file that libsndfile has opened; whatever it says about it becomes one sentence."""
    try:
        import soundfile
    except ImportError:
        raise missing_dependency("soundfile", "onnx") from None
    file_path = Path(path)
    if not file_path.is_file():
        what = "is not a file" if file_path.exists() else "does not exist"
        raise AudioError(f"{file_path} {what}: expected a sound file such as a WAV.")
    try:
        if file_path.stat().st_size == 0:
            raise AudioError(f"{file_path} is empty (0 bytes): expected a sound file such as a WAV.")
        _refuse_cut_off(file_path)
        with soundfile.SoundFile(file_path) as file:
            yield file
    # soundfile raises TypeError for a headerless .raw file.
    except (soundfile.LibsndfileError, RuntimeError, OSError, TypeError) as error:
        raise AudioError(f"{file_path} cannot be read as sound ({_first_line(error)}).") from None


def _mono_blocks(path: Path, file: Any) -> Iterator[Float32Array]:
    """What is left of an open file, some seconds at a time: float32 [samples] in [-1, 1]."""
    samples = max(1, min(_BLOCK_SECONDS * file.samplerate, _BLOCK_VALUES // file.channels))
    while len(channels := file.read(samples, dtype="float32", always_2d=True)):  # [samples, channels]
        yield _mix_down(path, channels)


def _mix_down(path: Path, channels: Float32Array) -> Float32Array:
    """[samples, channels] to [samples] in [-1, 1]."""
    if not np.isfinite(channels).all():
        raise AudioError(f"{path} holds samples that are not finite numbers: save it again as 16-bit WAV.")
    # Before, because samples near float32's end would overflow; callers do so after resampling, which overshoots.
    mono: Float32Array = np.clip(channels, -1.0, 1.0).mean(axis=1)
    return mono


def resample(waveform: Float32Array, found_rate: int, wanted_rate: int) -> Float32Array:
    """Change the sample rate with soxr's high-quality filter; [samples] to [samples * wanted / found]."""
    if found_rate == wanted_rate:
        return waveform.astype(np.float32)
    resampled: Float32Array = _soxr().resample(waveform, found_rate, wanted_rate, quality="HQ").astype(np.float32)
    return resampled


class ResampleStream:
    """The same for a sound that comes piece by piece."""

    def __init__(self, found_rate: int, wanted_rate: int) -> None:
        self._stream: Any = None
        if found_rate != wanted_rate:
            self._stream = _soxr().ResampleStream(found_rate, wanted_rate, 1, dtype="float32", quality="HQ")

    def push(self, samples: Float32Array, *, last: bool = False) -> Float32Array:
        """The next samples, float32 of any number, to those that are now certain."""
        if self._stream is None:
            return samples
        resampled: Float32Array = self._stream.resample_chunk(np.ascontiguousarray(samples), last=last)
        return resampled


def _soxr() -> Any:
    try:
        import soxr
    except ImportError:
        raise missing_dependency("soxr", "onnx") from None
    return soxr


def _refuse_cut_off(path: Path) -> None:
    """Refuse a WAV that ends before its header says: libsndfile would read on as if nothing were missing."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"RIFF":
            return
        file.seek(12)
        while len(head := file.read(8)) == 8:
            length = int.from_bytes(head[4:], "little")
            if head[:4] == b"data":
                missing = file.tell() + length - size
                # Programs that write to a pipe cannot know the length and put a huge one.
                if missing > 0 and length < STREAMED_LENGTH:
                    raise AudioError(f"{path} is cut off: {missing} bytes of its sound are missing, copy it again.")
                return
            file.seek(length + length % 2, os.SEEK_CUR)


def _check_length(path: Path, frames: int, found_rate: int, wanted_rate: int, max_samples: int) -> None:
    _check_rate(path, found_rate)
    seconds = frames / found_rate
    if seconds * wanted_rate > max_samples:
        limit = max_samples / wanted_rate
        raise AudioError(f"{path} lasts {seconds:.0f} s, but the model takes at most {limit:.0f} s: cut it into parts.")


def _check_rate(path: Path, found_rate: int) -> None:
    least, most = SAMPLE_RATES
    if not least <= found_rate <= most:
        raise AudioError(f"{path} states a sample rate of {found_rate} Hz, expected {least} to {most}: save it again.")


def _note(path: Path, found_rate: int, wanted_rate: int, channel_count: int, encoding: str) -> str:
    changes = []
    if found_rate != wanted_rate:
        changes.append(f"resampled from {found_rate} Hz to {wanted_rate} Hz")
    if channel_count > 1:
        changes.append(f"mixed down from {channel_count} channels")
    if encoding in ("PCM_U8", "PCM_S8"):
        changes.append("widened from 8-bit samples, which hiss")
    return f"{path} was {', '.join(changes)}." if changes else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
