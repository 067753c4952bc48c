"""The vision section of config.json, read strictly. The meaning of each key follows transformers' `models/gemma4`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cabochon_convert.checkpoint import CheckpointError
from cabochon_convert.config_section import (
    BOOKKEEPING,
    read_positive,
    read_positive_number,
    read_section,
    refuse_unknown,
    require_value,
)

_VISION_KEYS = BOOKKEEPING | {
    "attention_bias", "default_output_length", "global_head_dim", "head_dim", "hidden_activation", "hidden_size",
    "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
    "patch_size", "pooling_kernel_size", "position_embedding_size", "rms_norm_eps", "rope_parameters", "standardize",
    "use_clipped_linears",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The vision encoder."""

    hidden_size: int
    intermediate_size: int
    layer_count: int
    heads: int
    head_size: int
    """A multiple of four: half of it rotates with the column, half with the row, each in pairs."""
    patch_size: int
    """Pixels of a patch's side."""
    pooling_kernel_size: int
    """Patches along the side of the square that becomes one token."""
    position_count: int
    """Columns, and rows, that the checkpoint has position embeddings for."""
    rope_theta: float
    norm_epsilon: float
    clips_linears: bool
    standardizes: bool
    """Whether a bias and a scale of the checkpoint are applied to the pooled patches."""
    soft_tokens: int | None
    """Tokens of one image at most, where config.json says so."""


def read_vision(config: dict[str, Any]) -> VisionConfig:
    """Read config.json's `vision_config`.

    Raises:
        CheckpointError: an unknown key, or a value that is not implemented.
        KeyError: a key that the graph needs is missing.
    """
    vision = read_section(config, "vision_config")
    refuse_unknown(vision, _VISION_KEYS, "vision_config")
    require_value(vision, "hidden_activation", ("gelu_pytorch_tanh",))
    require_value(vision, "attention_bias", (False, None), default=False)
    heads, head_size = read_positive(vision, "num_attention_heads"), read_positive(vision, "head_dim")
    require_value(vision, "num_key_value_heads", (heads,))
    require_value(vision, "global_head_dim", (head_size, None), default=None)
    if head_size % 4:
        raise CheckpointError(f"vision_config.head_dim is {head_size}, expected a multiple of 4.")
    return VisionConfig(
        hidden_size=read_positive(vision, "hidden_size"),
        intermediate_size=read_positive(vision, "intermediate_size"),
        layer_count=read_positive(vision, "num_hidden_layers"),
        heads=heads,
        head_size=head_size,
        patch_size=read_positive(vision, "patch_size"),
        pooling_kernel_size=read_positive(vision, "pooling_kernel_size"),
        position_count=read_positive(vision, "position_embedding_size"),
        rope_theta=_read_theta(read_section(vision, "rope_parameters")),
        norm_epsilon=read_positive_number(vision, "rms_norm_eps"),
        clips_linears=require_value(vision, "use_clipped_linears", (True, False), default=False),
        standardizes=require_value(vision, "standardize", (True, False), default=False),
        soft_tokens=_read_soft_tokens(config, vision),
    )


def _read_theta(rope: dict[str, Any]) -> float:
    refuse_unknown(rope, {"rope_type", "rope_theta"}, "vision_config.rope_parameters")
    # Published configs say "default", which transformers reads as "axial" here, as it reads an absent type.
    require_value(rope, "rope_type", ("axial", "default"), default="axial")
    return read_positive_number(rope, "rope_theta")


def _read_soft_tokens(config: dict[str, Any], vision: dict[str, Any]) -> int | None:
    for section, key in ((config, "vision_soft_tokens_per_image"), (vision, "default_output_length")):
        if section.get(key) is not None:
            return read_positive(section, key)
    return None
