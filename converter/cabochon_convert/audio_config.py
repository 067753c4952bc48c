"""The audio section of config.json, read strictly.

The meaning of each key follows transformers' `models/gemma4` and `models/gemma4_unified` (5.23).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cabochon_convert.checkpoint import CheckpointError
from cabochon_convert.config_section import (
    BOOKKEEPING,
    read_positive,
    read_positive_number,
    refuse_unknown,
    require_value,
)

INVALID_LOGIT = -1e9
"""What the audio encoder's attention adds to logits of places that a token must not see."""

_AUDIO_KEYS = BOOKKEEPING | {
    "attention_chunk_size", "attention_context_left", "attention_context_right", "attention_invalid_logits_value",
    "attention_logit_cap", "conv_kernel_size", "gradient_clipping", "hidden_act", "hidden_size",
    "num_attention_heads", "num_hidden_layers", "output_proj_dims", "residual_weight", "rms_norm_eps",
    "subsampling_conv_channels", "use_clipped_linears",
}  # fmt: skip

# All four are names of one size.
_FRAME_LENGTH_KEYS = ("audio_embed_dim", "audio_samples_per_token", "hidden_size", "output_proj_dims")
_WAVEFORM_KEYS = BOOKKEEPING | {*_FRAME_LENGTH_KEYS, "rms_norm_eps"}


@dataclass(frozen=True, slots=True)
class WaveformConfig:
    """Hearing without an encoder: frames of samples are projected into the decoder's space."""

    frame_length: int
    """Samples of one audio token."""
    norm_epsilon: float


@dataclass(frozen=True, slots=True)
class AudioConfig:
    """The audio encoder."""

    hidden_size: int
    layer_count: int
    heads: int
    subsampling_channels: tuple[int, int]
    conv_kernel_size: int
    chunk_size: int
    """Tokens of one attention block, and of the past that it sees."""
    residual_weight: float
    attention_logit_cap: float
    gradient_clipping: float
    norm_epsilon: float
    clips_linears: bool
    output_size: int


def read_audio(audio: dict[str, Any]) -> AudioConfig:
    """Read config.json's `audio_config`.

    Raises:
        CheckpointError: an unknown key, or a value that is not implemented.
        KeyError: a key that the graph needs is missing.
    """
    refuse_unknown(audio, _AUDIO_KEYS, "audio_config")
    require_value(audio, "hidden_act", ("silu",), default="silu")
    require_value(audio, "attention_context_right", (0,), default=0)
    # Graphs mask with this value; transformers' default.
    require_value(audio, "attention_invalid_logits_value", (INVALID_LOGIT,), default=INVALID_LOGIT)
    chunk = read_positive(audio, "attention_chunk_size")
    require_value(audio, "attention_context_left", (chunk + 1,))
    channels = tuple(int(channel) for channel in audio["subsampling_conv_channels"])
    if len(channels) != 2:
        raise CheckpointError(f"audio_config.subsampling_conv_channels has {len(channels)} entries, expected 2.")
    if read_positive(audio, "hidden_size") % read_positive(audio, "num_attention_heads"):
        raise CheckpointError("audio_config.hidden_size must be a multiple of its num_attention_heads.")
    return AudioConfig(
        hidden_size=read_positive(audio, "hidden_size"),
        layer_count=read_positive(audio, "num_hidden_layers"),
        heads=read_positive(audio, "num_attention_heads"),
        subsampling_channels=(channels[0], channels[1]),
        conv_kernel_size=read_positive(audio, "conv_kernel_size"),
        chunk_size=chunk,
        residual_weight=read_positive_number(audio, "residual_weight"),
        attention_logit_cap=read_positive_number(audio, "attention_logit_cap"),
        gradient_clipping=read_positive_number(audio, "gradient_clipping"),
        norm_epsilon=read_positive_number(audio, "rms_norm_eps"),
        clips_linears=bool(audio["use_clipped_linears"]),
        output_size=read_positive(audio, "output_proj_dims"),
    )


def read_waveform(audio: dict[str, Any]) -> WaveformConfig:
    """Read config.json's `audio_config` of a model without an audio encoder.

    Raises:
        CheckpointError: an unknown key, or a value that is not implemented.
        KeyError: a key that the graph needs is missing.
    """
    refuse_unknown(audio, _WAVEFORM_KEYS, "audio_config")
    lengths = {key: read_positive(audio, key) for key in _FRAME_LENGTH_KEYS if key in audio}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise CheckpointError(f"audio_config names different sizes of one frame: {found}.")
    if not lengths:
        raise KeyError(_FRAME_LENGTH_KEYS[0])
    return WaveformConfig(next(iter(lengths.values())), read_positive_number(audio, "rms_norm_eps"))
