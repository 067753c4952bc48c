"""What a checkpoint hears with: the audio part of processor_config.json, read strictly."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cabochon.log_mel import LogMelParameters
from cabochon.waveform_frames import WaveformFrameParameters
from cabochon_convert.audio_config import AudioConfig, WaveformConfig
from cabochon_convert.checkpoint import CheckpointError, read_json

DEFAULT_LOG_MEL = LogMelParameters(
    sample_rate=16_000,
    frame_length=320,
    hop_length=160,
    fft_length=512,
    mel_bins=128,
    min_frequency=0.0,
    max_frequency=8000.0,
    mel_floor=1e-3,
)
"""Gemma4AudioFeatureExtractor's defaults: frames of 20 ms every 10 ms."""

# How processor_config.json calls the fields of LogMelParameters.
_FRONTEND_KEYS = {
    "sampling_rate": "sample_rate",
    "frame_length": "frame_length",
    "hop_length": "hop_length",
    "fft_length": "fft_length",
    "feature_size": "mel_bins",
    "min_frequency": "min_frequency",
    "max_frequency": "max_frequency",
    "mel_floor": "mel_floor",
}
# Settings of which one value only is implemented.
_FRONTEND_FIXED = {
    "dither": 0.0,
    "fft_overdrive": False,
    "input_scale_factor": 1.0,
    "preemphasis": 0.0,
    "per_bin_mean": None,
    "per_bin_stddev": None,
    "frame_length_ms": 20.0,
    "hop_length_ms": 10.0,
}
_FRONTEND_INDIFFERENT = {
    "feature_extractor_type", "padding_side", "padding_value", "preemphasis_htk_flavor", "processor_class",
    "return_attention_mask",
}  # fmt: skip
_LOG_MEL_SETTINGS = _FRONTEND_KEYS.keys() | _FRONTEND_FIXED.keys() | _FRONTEND_INDIFFERENT
DEFAULT_TOKENS_PER_CLIP = 750
DEFAULT_MS_PER_TOKEN = 40
DEFAULT_SAMPLE_RATE = 16_000
"""Gemma4UnifiedAudioFeatureExtractor's."""


@dataclass(frozen=True, slots=True)
class AudioFrontend:
    """How a checkpoint hears."""

    frames: LogMelParameters | WaveformFrameParameters
    max_samples: int
    note: str
    """One sentence when the checkpoint does not say; empty otherwise."""


def read_audio_frontend(folder: Path, config: AudioConfig | WaveformConfig) -> AudioFrontend:
    """The audio frontend of processor_config.json.

    Fine-tuned checkpoints often lack it; transformers' defaults are what they were trained with, so they are used and
    said.

    Raises:
        CheckpointError: a setting that the runtime does not implement, or that does not belong to the audio encoder.
    """
    path = folder / "processor_config.json"
    processor = read_json(path) if path.is_file() else {}
    extractor = processor.get("feature_extractor")
    note = ""
    if not isinstance(extractor, dict):
        note = f"{path.name} says nothing about audio, so transformers' default frontend is used."
        extractor = {}
    try:
        frames: LogMelParameters | WaveformFrameParameters
        if isinstance(config, AudioConfig):
            frames = _read_log_mel(path, extractor, config)
        else:
            frames = _read_waveform_frames(path, extractor, config)
        milliseconds = int(processor.get("audio_seq_length", DEFAULT_TOKENS_PER_CLIP)) * int(
            processor.get("audio_ms_per_token", DEFAULT_MS_PER_TOKEN)
        )
        max_samples = milliseconds * frames.sample_rate // 1000
        if max_samples <= 0:
            raise ValueError(f"clips of {milliseconds} ms")
    except CheckpointError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path} describes an impossible audio frontend ({error}).") from None
    return AudioFrontend(frames, max_samples, note)


def _refuse_unknown_settings(path: Path, extractor: dict[str, Any], known: Set[str]) -> None:
    if unknown := sorted(extractor.keys() - known):
        raise CheckpointError(f"{path} has the unknown audio setting {unknown[0]}, which may change what is heard.")


def _read_log_mel(path: Path, extractor: dict[str, Any], config: AudioConfig) -> LogMelParameters:
    _refuse_unknown_settings(path, extractor, _LOG_MEL_SETTINGS)
    for key, value in _FRONTEND_FIXED.items():
        if extractor.get(key, value) != value:
            raise CheckpointError(f"{path} sets {key} to {extractor[key]!r}, but only {value!r} is implemented.")
    changes: dict[str, Any] = {}
    for key, name in _FRONTEND_KEYS.items():
        if key in extractor:
            changes[name] = type(getattr(DEFAULT_LOG_MEL, name))(extractor[key])
    parameters = replace(DEFAULT_LOG_MEL, **changes)
    # The reference computes the width after the convolutions from the channels where the mel bins are meant.
    if config.subsampling_channels[0] != parameters.mel_bins:
        raise CheckpointError(
            f"the audio encoder starts with {config.subsampling_channels[0]} channels, but the frontend has "
            f"{parameters.mel_bins} mel bins: {path.name} does not belong to this config.json."
        )
    return parameters


def _read_waveform_frames(path: Path, extractor: dict[str, Any], config: WaveformConfig) -> WaveformFrameParameters:
    """Settings of log-mels may be left over: transformers pays no heed to them here."""
    _refuse_unknown_settings(path, extractor, _LOG_MEL_SETTINGS | {"audio_samples_per_token"})
    length = extractor.get("audio_samples_per_token", config.frame_length)
    if length != config.frame_length:
        raise CheckpointError(
            f"{path} makes a token of {length!r} samples, but config.json of {config.frame_length}: they do not belong "
            "together."
        )
    sample_rate = int(extractor.get("sampling_rate", DEFAULT_SAMPLE_RATE))
    return WaveformFrameParameters(sample_rate=sample_rate, frame_length=config.frame_length)
