"""Waveform to frames of samples, which a model without an audio encoder hears as they are.

Equal to transformers' `Gemma4UnifiedAudioFeatureExtractor` for a single clip.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cabochon.arrays import Float32Array


@dataclass(frozen=True, slots=True, kw_only=True)
class WaveformFrameParameters:
    """How a clip is cut."""

    sample_rate: int
    """Samples per second that the model was trained on."""
    frame_length: int
    """Samples in one frame."""

    def __post_init__(self) -> None:
        if min(self.sample_rate, self.frame_length) <= 0:
            raise ValueError("sample_rate and frame_length must be positive")
        if self.sample_rate > 384_000 or self.frame_length > self.sample_rate:
            raise ValueError("a frame is longer than a second, or the sample rate is above 384000")

    @property
    def hop_length(self) -> int:
        """Samples between the starts of two frames."""
        return self.frame_length

    def frame_count(self, samples: int) -> int:
        """Frames of a clip of this many samples; the last one may hold fewer."""
        return -(-samples // self.frame_length)


def cut_waveform(waveform: Float32Array, parameters: WaveformFrameParameters) -> Float32Array:
    """Cut a mono waveform into frames that do not overlap; the last one is filled up with silence.

    Args:
        waveform: float32 [samples] in [-1, 1] at `parameters.sample_rate`.
        parameters: of the checkpoint.

    Returns:
        float32 [frames, frame_length]; `frames` is `parameters.frame_count(samples)`.
    """
    if waveform.ndim != 1:
        raise ValueError(f"expected a mono waveform of shape [samples], got shape {list(waveform.shape)}")
    frames = np.zeros((parameters.frame_count(len(waveform)), parameters.frame_length), np.float32)
    frames.reshape(-1)[: len(waveform)] = waveform
    return frames
