"""What a model hears: the part of the manifest that whoever makes frames of a sound has to know."""

from __future__ import annotations

from dataclasses import dataclass

from cabochon.arrays import Float32Array
from cabochon.log_mel import LogMelParameters, log_mel
from cabochon.waveform_frames import WaveformFrameParameters, cut_waveform


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioModel:
    """Audio input of a model: log-mel frames where it has an audio encoder, frames of samples where it has none."""

    log_mel: LogMelParameters | None
    """What its audio encoder hears; None where it has none."""
    waveform_frames: WaveformFrameParameters | None
    """What it hears without an encoder; its graph only projects frames. None where it has one."""
    max_samples: int
    """Longest clip that the model was trained on, in samples."""
    frames_per_token: int
    """Frames that one audio token stands for (the last token may stand for fewer)."""
    begin_token: int
    soft_token: int
    """Placeholder id; its embedding is replaced by the encoder's."""
    end_token: int

    def __post_init__(self) -> None:
        if min(self.max_samples, self.frames_per_token) <= 0:
            raise ValueError("the audio model has a size that is not positive")
        if self.max_samples > 1 << 30:
            raise ValueError("the audio model hears clips of hours at once")
        if (self.log_mel is None) == (self.waveform_frames is None):
            raise ValueError("the audio model needs either log_mel or waveform_frames")

    @property
    def frontend(self) -> LogMelParameters | WaveformFrameParameters:
        """How frames are made of a waveform."""
        frontend = self.log_mel or self.waveform_frames
        assert frontend is not None  # __post_init__ refuses a model without
        return frontend

    @property
    def sample_rate(self) -> int:
        """Samples per second that the model hears."""
        return self.frontend.sample_rate

    def make_frames(self, waveform: Float32Array) -> Float32Array:
        """What the audio encoder takes.

        Args:
            waveform: float32 [samples] in [-1, 1] at `sample_rate`.

        Returns:
            float32 [frames, values]; no frames where the clip is too short for one.
        """
        if isinstance(self.frontend, LogMelParameters):
            return log_mel(waveform, self.frontend)
        return cut_waveform(waveform, self.frontend)

    def token_count(self, frames: int) -> int:
        """Audio tokens that the encoder makes of this many frames."""
        return -(-frames // self.frames_per_token)
