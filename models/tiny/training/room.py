"""What a simulated room and microphone do to clean speech."""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.signal import fftconvolve

from .voices import SAMPLE_RATE, Float32Array

_EQUALIZER_POINTS: Final = 8
_EQUALIZER_DECIBELS: Final = 8.0


def trim(waveform: Float32Array) -> Float32Array:
    """Without the synthesizer's silence at both ends."""
    loud = np.flatnonzero(np.abs(waveform) > 0.01 * np.abs(waveform).max())
    return waveform[loud[0] : loud[-1] + 1] if len(loud) else waveform


def reverberate(waveform: Float32Array, generator: np.random.Generator) -> Float32Array:
    """Noise that decays by 60 dB within 50 to 250 ms, as the response of a small room."""
    length = int(SAMPLE_RATE * generator.uniform(0.05, 0.25))
    response = generator.standard_normal(length) * 10.0 ** (-3.0 * np.arange(length) / length)
    response *= generator.uniform(0.1, 0.5) / np.sqrt(np.square(response).sum())
    response[0] = 1.0
    return np.asarray(fftconvolve(waveform, response)[: len(waveform)], np.float32)


def add_noise(waveform: Float32Array, generator: np.random.Generator) -> Float32Array:
    """White or pink noise, 12 to 40 dB below the speech."""
    noise = generator.standard_normal(len(waveform))
    if generator.random() < 0.5:
        spectrum = np.fft.rfft(noise)
        noise = np.fft.irfft(spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)), len(waveform))
        noise /= noise.std()
    level = np.sqrt(np.square(waveform).mean()) * 10 ** (-generator.uniform(12, 40) / 20)
    return np.asarray(waveform + level * noise, np.float32)


def _color(waveform: Float32Array, generator: np.random.Generator) -> Float32Array:
    """A smooth random frequency response, as of another microphone."""
    gains = generator.uniform(-_EQUALIZER_DECIBELS, _EQUALIZER_DECIBELS, _EQUALIZER_POINTS)
    spectrum = np.fft.rfft(waveform)
    # Points evenly spaced on an octave scale over the upper seven octaves of the band.
    places = np.log2(np.maximum(np.arange(len(spectrum)) / len(spectrum), 2.0**-7)) / 7 + 1
    curve = np.interp(places, np.linspace(0, 1, _EQUALIZER_POINTS), gains)
    return np.asarray(np.fft.irfft(spectrum * 10 ** (curve / 20), len(waveform)), np.float32)


def spoil(waveform: Float32Array, generator: np.random.Generator) -> Float32Array:
    """The same speech after silence at both ends, perhaps a room and another microphone, a gain and perhaps noise."""
    before, after = generator.uniform(0.04, 0.22), generator.uniform(0.12, 0.3)  # seconds
    padded = np.pad(trim(waveform), (int(SAMPLE_RATE * before), int(SAMPLE_RATE * after)))
    if generator.random() < 0.35:
        padded = reverberate(padded, generator)
    if generator.random() < 0.5:
        padded = _color(padded, generator)
    scaled = padded * np.float32(generator.uniform(0.15, 0.9) / (np.abs(padded).max() + 1e-6))
    noisy = add_noise(scaled, generator) if generator.random() < 0.6 else scaled
    return np.clip(noisy, -1, 1).astype(np.float32)
