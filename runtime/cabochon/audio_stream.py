"""A sound to audio embeddings while it comes: the very embeddings of the whole."""

from __future__ import annotations

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.audio_model import AudioModel
from cabochon.backend import AudioEncoderStream
from cabochon.log_mel import LogMelParameters, LogMelStream


class AudioStream:
    """Log-mels and audio encoder of one sound, which comes piece by piece."""

    def __init__(self, audio: AudioModel, encoder: AudioEncoderStream) -> None:
        """Args: audio: a model with an audio encoder, which hears log-mels."""
        if not isinstance(audio.frontend, LogMelParameters):
            raise ValueError("only log-mels come piece by piece")
        self._log_mel = LogMelStream(audio.frontend)
        self._encoder = encoder
        self.block_tokens = audio.token_count(encoder.block_frames)
        """Embeddings that are made at a time; `finish` gives no more."""
        self._frames = np.zeros((0, audio.frontend.mel_bins), np.float32)

    def push(self, samples: Float32Array) -> Float32Array:
        """The next samples, float32 of any number, to the embeddings [tokens, hidden] that are now certain."""
        self._frames = np.concatenate([self._frames, self._log_mel.push(samples)])
        block = self._encoder.block_frames
        whole = len(self._frames) - len(self._frames) % block
        ready, self._frames = self._frames[:whole], self._frames[whole:]
        return self._encode(ready)

    def finish(self) -> Float32Array:
        """The sound has ended: embeddings of what is left."""
        return self._encode(self._frames)

    def _encode(self, frames: Float32Array) -> Float32Array:
        return self._encoder.encode(frames) if len(frames) else np.zeros((0, 0), np.float32)
