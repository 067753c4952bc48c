"""Waveform to log-mel spectrogram, equal to transformers' `Gemma4AudioFeatureExtractor` for a single clip."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from cabochon.arrays import Float32Array


@dataclass(frozen=True, slots=True, kw_only=True)
class LogMelParameters:
    """The audio frontend of one checkpoint, as its processor_config.json states it."""

    sample_rate: int
    """Samples per second that the model was trained on."""
    frame_length: int
    """Samples in one analysis frame."""
    hop_length: int
    """Samples between the starts of two frames."""
    fft_length: int
    """Points of the discrete Fourier transform; frames are zero-padded to it."""
    mel_bins: int
    """Triangular filters, equally spaced on the HTK mel scale."""
    min_frequency: float
    """Lower edge of the first filter, in Hz."""
    max_frequency: float
    """Upper edge of the last filter, in Hz."""
    mel_floor: float
    """Added to every filter's magnitude before the logarithm."""

    def __post_init__(self) -> None:
        if min(self.sample_rate, self.frame_length, self.hop_length, self.mel_bins) <= 0:
            raise ValueError("sample_rate, frame_length, hop_length and mel_bins must be positive")
        if self.fft_length < self.frame_length:
            raise ValueError(f"fft_length {self.fft_length} is shorter than frame_length {self.frame_length}")
        if not 0 <= self.min_frequency < self.max_frequency <= self.sample_rate / 2:
            raise ValueError("expected 0 <= min_frequency < max_frequency <= sample_rate / 2")
        if self.mel_bins > 1024 or self.fft_length > min(1 << 16, 64 * self.hop_length) or self.sample_rate > 384_000:
            raise ValueError("the log-mel frontend is far larger than any for speech")
        if not 0 < self.mel_floor < math.inf:
            raise ValueError("mel_floor must be positive and finite, or silence has no logarithm")

    def frame_count(self, samples: int) -> int:
        """Log-mel frames that a clip of this many samples gives: those that hold nothing but real audio.

        The reference looks one sample past a frame's end (it takes frames of frame_length + 1), hence the -1.
        """
        padded = samples + self.frame_length // 2
        return max(0, (padded - self.frame_length - 1) // self.hop_length + 1)


def log_mel(waveform: Float32Array, parameters: LogMelParameters) -> Float32Array:
    """Log-mel spectrogram of a mono waveform.

    Args:
        waveform: float32 [samples] in [-1, 1] at `parameters.sample_rate`.
        parameters: the frontend of the checkpoint.

    Returns:
        float32 [frames, mel_bins]; `frames` is `parameters.frame_count(samples)`, 0 for a clip below one frame.
    """
    if waveform.ndim != 1:
        raise ValueError(f"expected a mono waveform of shape [samples], got shape {list(waveform.shape)}")
    frames = parameters.frame_count(len(waveform))
    # "Semicausal" padding: the first frame is centred on the first sample.
    padded = np.concatenate([np.zeros(parameters.frame_length // 2, np.float32), waveform.astype(np.float32)])
    return _frames_of(padded, frames, parameters)


def _frames_of(padded: Float32Array, frames: int, parameters: LogMelParameters) -> Float32Array:
    """The first frames of a waveform, each at a multiple of the hop: float32 [frames, mel_bins]."""
    if frames == 0:
        return np.zeros((0, parameters.mel_bins), np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(padded, parameters.frame_length)
    framed = windows[: (frames - 1) * parameters.hop_length + 1 : parameters.hop_length]  # [frames, frame_length]
    spectrum = np.fft.rfft(framed * _hann_window(parameters.frame_length), n=parameters.fft_length)
    mel = np.abs(spectrum) @ mel_filters(parameters)  # magnitude, not power
    return np.log(mel + parameters.mel_floor).astype(np.float32)


class LogMelStream:
    """The same frames of a waveform that comes piece by piece."""

    def __init__(self, parameters: LogMelParameters) -> None:
        self._parameters = parameters
        self._rest = np.zeros(parameters.frame_length // 2, np.float32)
        """Samples from the start of the next frame on; before the first there is silence."""

    def push(self, samples: Float32Array) -> Float32Array:
        """float32 [samples] to the frames that are now complete: float32 [frames, mel_bins]."""
        parameters = self._parameters
        waveform = np.concatenate([self._rest, samples.astype(np.float32)])
        # See `LogMelParameters.frame_count`.
        frames = max(0, (len(waveform) - parameters.frame_length - 1) // parameters.hop_length + 1)
        self._rest = waveform[frames * parameters.hop_length :]
        return _frames_of(waveform, frames, parameters)


@lru_cache(maxsize=8)
def _hann_window(length: int) -> Float32Array:
    """Periodic Hann window: 0.5 - 0.5 cos(2 pi n / length)."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


@lru_cache(maxsize=8)
def mel_filters(parameters: LogMelParameters) -> npt.NDArray[np.float64]:
    """Triangular filters of peak 1, [fft_length // 2 + 1, mel_bins], spaced by HTK's 2595 log10(1 + f / 700)."""
    low, high = (2595.0 * np.log10(1.0 + f / 700.0) for f in (parameters.min_frequency, parameters.max_frequency))
    edges = 700.0 * (10.0 ** (np.linspace(low, high, parameters.mel_bins + 2) / 2595.0) - 1.0)
    frequencies = np.linspace(0, parameters.sample_rate // 2, parameters.fft_length // 2 + 1)
    slopes = edges[None, :] - frequencies[:, None]  # [fft bins, mel_bins + 2]
    widths = np.diff(edges)
    rising = -slopes[:, :-2] / widths[:-1]
    falling = slopes[:, 2:] / widths[1:]
    filters: npt.NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    return filters
