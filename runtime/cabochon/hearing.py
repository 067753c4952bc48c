"""What a model hears: a sound to the embeddings that take its place in the prompt."""

from __future__ import annotations

import os

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.audio_model import AudioModel
from cabochon.backend import AudioEncoder
from cabochon.errors import AudioError
from cabochon.perceived import Perceived, mark_of
from cabochon.wav import Sound, read_sound

SoundSource = str | os.PathLike[str] | Float32Array
"""A sound file, or a mono waveform float32 [samples] at the model's sample rate."""


class Hearing:
    """wav → frames → audio encoder → embeddings."""

    def __init__(self, audio: AudioModel, encoder: AudioEncoder) -> None:
        self.audio = audio
        self.encoder = encoder

    def read(self, sound: SoundSource) -> Sound:
        """A sound as the model takes it.

        Raises:
            AudioError: it cannot be read, or is longer than the model takes.
        """
        if isinstance(sound, str | os.PathLike):
            return read_sound(sound, self.audio.sample_rate, self.audio.max_samples)
        return Sound(check_waveform(sound, self.audio.max_samples), self.audio.sample_rate, "")

    def make_frames(self, sound: Sound) -> Float32Array:
        """What the encoder takes: [frames, values].

        Raises:
            AudioError: the sound is too short to be heard.
        """
        frames = self.audio.make_frames(sound.waveform)
        if len(frames) == 0:
            raise AudioError(f"the sound lasts {sound.seconds * 1000:.0f} ms, too short to hold speech.")
        return frames

    def encode(self, sound: Sound, frames: Float32Array) -> Perceived:
        """What is heard of a sound, from its frames."""
        return Perceived(self.encoder.encode(frames).copy(), mark_of("sound", sound.waveform))


def check_waveform(sound: object, max_samples: int | None = None) -> Float32Array:
    """A waveform that somebody made, float32 [samples].

    Args:
        sound: that should be one.
        max_samples: longest that is taken; None takes any.

    Raises:
        AudioError: it is none.
    """
    if not isinstance(sound, np.ndarray):
        raise AudioError(
            f"the sound is a {type(sound).__name__}: expected the path of a file, or a waveform in a numpy array."
        )
    fits = np.issubdtype(sound.dtype, np.floating) and sound.ndim == 1
    # A comparison with "not a number" is false.
    if not fits or (max_samples is not None and len(sound) > max_samples) or not (np.abs(sound) <= 1).all():
        limit = "" if max_samples is None else f"at most {max_samples} "
        raise AudioError(
            f"the waveform is {sound.dtype} of shape {list(sound.shape)}: expected {limit}"
            "floating-point samples, all of them in [-1, 1]."
        )
    return sound.astype(np.float32)
