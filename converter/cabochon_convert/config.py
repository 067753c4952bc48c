"""The checkpoint's config.json, resolved layer by layer and read strictly.

A key that is not known may change the maths, so it is an error, and so is a known key with a value that the graphs do
not implement. The meaning of each key follows transformers' `models/gemma4` (5.23).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cabochon_convert.checkpoint import CheckpointError
from cabochon_convert.config_section import (
    BOOKKEEPING,
    read_positive,
    read_positive_number,
    read_section,
    read_token,
    read_token_list,
    refuse_unknown,
    require_value,
)
from cabochon_convert.quantization_config import (
    CompressedTensorsQuantization,
    GemmaQuantization,
    read_quantization,
)
from cabochon_convert.vision_config import VisionConfig, read_vision

ARCHITECTURE = "Gemma4ForConditionalGeneration"
INVALID_LOGIT = -1e9
"""What the audio encoder's attention adds to logits of places that a token must not see."""

_TOP_KEYS = BOOKKEEPING | {
    "audio_config", "audio_token_id", "boa_token_id", "boi_token_id", "eoa_token_id", "eoa_token_index",
    "eoi_token_id", "eos_token_id", "image_token_id", "text_config", "tie_word_embeddings", "video_token_id",
    "vision_config", "vision_soft_tokens_per_image", "pad_token_id", "bos_token_id", "quantization_config",
}  # fmt: skip

_TEXT_KEYS = BOOKKEEPING | {
    "attention_bias", "attention_k_eq_v", "bos_token_id", "enable_moe_block", "eos_token_id",
    "expert_intermediate_size", "final_logit_softcapping", "global_head_dim", "head_dim", "hidden_activation",
    "hidden_size", "hidden_size_per_layer_input", "intermediate_size", "layer_types", "max_position_embeddings",
    "moe_intermediate_size", "num_attention_heads", "num_experts", "num_global_key_value_heads", "num_hidden_layers",
    "num_key_value_heads", "num_kv_shared_layers", "pad_token_id", "partial_rotary_factor", "per_layer_config",
    "rms_norm_eps", "rope_local_base_freq", "rope_parameters", "rope_theta", "sliding_window", "tie_word_embeddings",
    "top_k_experts", "use_bidirectional_attention", "use_double_wide_mlp", "vocab_size", "vocab_size_per_layer_input",
}  # fmt: skip

_AUDIO_KEYS = BOOKKEEPING | {
    "attention_chunk_size", "attention_context_left", "attention_context_right", "attention_invalid_logits_value",
    "attention_logit_cap", "conv_kernel_size", "gradient_clipping", "hidden_act", "hidden_size",
    "num_attention_heads", "num_hidden_layers", "output_proj_dims", "residual_weight", "rms_norm_eps",
    "subsampling_conv_channels", "use_clipped_linears",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """One decoder layer, with everything that depends on its index resolved."""

    kind: str
    """`sliding` or `full` attention."""
    head_size: int
    kv_heads: int
    intermediate_size: int
    cache_layer: int
    """The layer whose keys and values it reads: itself, or an earlier one of the same kind (KV sharing)."""


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding of one kind of layer."""

    theta: float
    rotated_fraction: float
    """Share of the frequency pairs that rotate; the others have frequency zero."""


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The text decoder."""

    vocabulary_size: int
    hidden_size: int
    per_layer_input_size: int
    heads: int
    layers: tuple[LayerConfig, ...]
    sliding_window: int
    rope: dict[str, RopeConfig]
    norm_epsilon: float
    final_logit_softcap: float
    max_positions: int
    ties_embeddings: bool
    bos_token: int
    pad_token: int

    @property
    def owner_count(self) -> int:
        """Layers from the start that own a cache; all later ones share."""
        return sum(layer.cache_layer == index for index, layer in enumerate(self.layers))


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


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The whole model."""

    text: TextConfig
    audio: AudioConfig | None
    vision: VisionConfig | None
    audio_token: int
    begin_audio_token: int
    end_audio_token: int
    image_token: int
    begin_image_token: int
    end_image_token: int | None
    """None where neither the checkpoint names one nor the model sees."""
    eos_tokens: tuple[int, ...]
    quantization: GemmaQuantization | CompressedTensorsQuantization | None
    """How weights are stored as integers; None where all of them are floating point."""


def read_config(config: dict[str, Any], *, with_audio: bool = True, with_vision: bool = True) -> ModelConfig:
    """Resolve config.json.

    Raises:
        CheckpointError: another architecture, an unknown key, or a value that is not implemented.
    """
    architectures = config.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    if config.get("model_type") != "gemma4" or architecture not in (ARCHITECTURE, None):
        found = architecture or config.get("model_type") or "no model type"
        raise CheckpointError(f"config.json describes {found}, expected {ARCHITECTURE} (Gemma 4 E2B or E4B).")
    refuse_unknown(config, _TOP_KEYS, "config.json")
    try:
        ties_embeddings = require_value(config, "tie_word_embeddings", (True, False), default=True)
        text = _read_text(read_section(config, "text_config"), ties_embeddings=ties_embeddings)
        audio = _read_audio(read_section(config, "audio_config")) if with_audio and config.get("audio_config") else None
        vision = read_vision(config) if with_vision and config.get("vision_config") else None
        end_image = config.get("eoi_token_id")
        model = ModelConfig(
            text=text,
            audio=audio,
            vision=vision,
            audio_token=read_token(config.get("audio_token_id"), 258881),
            begin_audio_token=read_token(config.get("boa_token_id"), 256000),
            end_audio_token=read_token(config.get("eoa_token_index", config.get("eoa_token_id")), 258883),
            image_token=read_token(config.get("image_token_id"), 258880),
            begin_image_token=read_token(config.get("boi_token_id"), 255999),
            end_image_token=None if vision is None and end_image is None else read_token(end_image, 258882),
            eos_tokens=read_token_list(config.get("eos_token_id", config["text_config"].get("eos_token_id", 1))),
            quantization=read_quantization(config.get("quantization_config")),
        )
        quantization = model.quantization
        if isinstance(quantization, GemmaQuantization) and quantization.quantizes_embeddings and ties_embeddings:
            raise CheckpointError(
                "config.json ties the output matrix to an embedding of integers, which is not implemented: "
                "expected tie_word_embeddings to be false."
            )
        _refuse_tokens_outside(model)
        return model
    except KeyError as error:
        raise CheckpointError(f"config.json lacks the key {error.args[0]}, which the graphs need.") from None
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"config.json holds a value of the wrong kind ({error}).") from None


def _read_text(text: dict[str, Any], *, ties_embeddings: bool) -> TextConfig:
    refuse_unknown(text, _TEXT_KEYS, "text_config")
    require_value(text, "hidden_activation", ("gelu_pytorch_tanh",))
    require_value(text, "attention_bias", (False,), default=False)
    require_value(text, "attention_k_eq_v", (False,), default=False)
    require_value(text, "enable_moe_block", (False,), default=False)
    require_value(text, "use_bidirectional_attention", (None,), default=None)
    require_value(text, "vocab_size_per_layer_input", (text["vocab_size"],), default=text["vocab_size"])
    cap_key = "final_logit_softcapping"
    return TextConfig(
        vocabulary_size=read_positive(text, "vocab_size"),
        hidden_size=read_positive(text, "hidden_size"),
        per_layer_input_size=read_positive(text, "hidden_size_per_layer_input"),
        heads=read_positive(text, "num_attention_heads"),
        layers=_read_layers(text),
        sliding_window=read_positive(text, "sliding_window"),
        rope=_read_rope(text),
        norm_epsilon=read_positive_number(text, "rms_norm_eps"),
        final_logit_softcap=read_positive_number(text, cap_key) if text.get(cap_key) else 0.0,
        max_positions=read_positive(text, "max_position_embeddings"),
        ties_embeddings=ties_embeddings,
        bos_token=read_token(text.get("bos_token_id"), 2),
        pad_token=read_token(text.get("pad_token_id"), 0),
    )


def _read_layers(text: dict[str, Any]) -> tuple[LayerConfig, ...]:
    count = read_positive(text, "num_hidden_layers")
    names = text.get("layer_types")
    if not names:  # transformers' default pattern
        names = ["full_attention" if (index + 1) % 6 == 0 else "sliding_attention" for index in range(count)]
    if len(names) != count or set(names) - {"sliding_attention", "full_attention"} or names[-1] != "full_attention":
        raise CheckpointError(
            "text_config.layer_types must name sliding_attention or full_attention for every layer, the last one full."
        )
    kinds = [name.removesuffix("_attention") for name in names]
    owners = count - int(text.get("num_kv_shared_layers", 0))
    if not 0 < owners <= count or (owners < count and set(kinds[:owners]) != set(kinds)):
        raise CheckpointError("text_config.num_kv_shared_layers leaves no layer of some kind that owns a cache.")
    overrides = _layer_overrides(text, kinds)
    wide = 2 if text.get("use_double_wide_mlp") else 1
    layers = []
    for index, kind in enumerate(kinds):
        shares = index >= owners
        cache_layer = max(i for i in range(owners) if kinds[i] == kind) if shares else index
        layers.append(
            LayerConfig(
                kind=kind,
                head_size=read_positive(text | overrides[index], "head_dim"),
                kv_heads=read_positive(text | overrides[index], "num_key_value_heads"),
                intermediate_size=read_positive(text, "intermediate_size") * (wide if shares else 1),
                cache_layer=cache_layer,
            )
        )
    for layer in layers:
        if layer.head_size % 8 or text["num_attention_heads"] % layer.kv_heads:
            raise CheckpointError("head_dim must be a multiple of 8, and the heads a multiple of the key-value heads.")
    # One table of rotations serves a kind, and a shared cache has to fit its readers.
    if len({(layer.kind, layer.head_size) for layer in layers}) > len(set(kinds)):
        raise CheckpointError("text_config.per_layer_config gives layers of one kind different values of head_dim.")
    if any(layer.kv_heads != layers[layer.cache_layer].kv_heads for layer in layers):
        raise CheckpointError("text_config.per_layer_config gives layers that share a cache different key-value heads.")
    return tuple(layers)


def _layer_overrides(text: dict[str, Any], kinds: list[str]) -> list[dict[str, Any]]:
    """Per layer, what differs from the config's own values: newer configs list it, older ones imply it."""
    listed = text.get("per_layer_config")
    if listed is None:
        full = {"head_dim": text.get("global_head_dim", 512)}
        return [full if kind == "full" else {} for kind in kinds]
    by_index = {int(index): override for index, override in listed.items()}
    if by_index.keys() - set(range(len(kinds))):
        raise CheckpointError("text_config.per_layer_config names layers that do not exist.")
    for override in by_index.values():
        refuse_unknown(override, {"head_dim", "num_key_value_heads"}, "text_config.per_layer_config")
    return [by_index.get(index, {}) for index in range(len(kinds))]


def _read_rope(text: dict[str, Any]) -> dict[str, RopeConfig]:
    """Both rotary embeddings; configs from before `rope_parameters` spread the same values over three keys."""
    parameters = text.get("rope_parameters") or {
        "sliding_attention": {"rope_type": "default", "rope_theta": text.get("rope_local_base_freq", 10_000.0)},
        "full_attention": {
            "rope_type": "proportional",
            "rope_theta": text.get("rope_theta", 1_000_000.0),
            "partial_rotary_factor": text.get("partial_rotary_factor", 0.25),
        },
    }
    refuse_unknown(parameters, {"sliding_attention", "full_attention"}, "text_config.rope_parameters")
    result = {}
    for name in ("sliding_attention", "full_attention"):
        entry = parameters[name]
        place = f"text_config.rope_parameters.{name}"
        refuse_unknown(entry, {"rope_type", "rope_theta", "partial_rotary_factor"}, place)
        if entry.get("rope_type", "default") not in ("default", "proportional"):
            raise CheckpointError(f"{place}.rope_type is {entry['rope_type']!r}, expected default or proportional.")
        # The default type ignores the factor: transformers' compute_default_rope_parameters.
        proportional = entry.get("rope_type") == "proportional"
        fraction = float(entry.get("partial_rotary_factor", 1.0)) if proportional else 1.0
        if not 0 <= fraction <= 1:
            raise CheckpointError(f"{place}.partial_rotary_factor is {fraction}, expected a share between 0 and 1.")
        result[name.removesuffix("_attention")] = RopeConfig(read_positive_number(entry, "rope_theta"), fraction)
    return result


def _read_audio(audio: dict[str, Any]) -> AudioConfig:
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


def _refuse_tokens_outside(model: ModelConfig) -> None:
    """Better now than when the finished package is read."""
    tokens = {"bos_token_id": model.text.bos_token, "pad_token_id": model.text.pad_token}
    if model.audio is not None:
        tokens |= {
            "audio_token_id": model.audio_token,
            "boa_token_id": model.begin_audio_token,
            "eoa_token_id": model.end_audio_token,
        }
    if model.vision is not None:
        tokens |= {
            "image_token_id": model.image_token,
            "boi_token_id": model.begin_image_token,
            "eoi_token_id": model.end_image_token or 0,
        }
    for key, token in tokens.items():
        if not 0 <= token < model.text.vocabulary_size:
            raise CheckpointError(f"config.json's {key} is {token}, outside its vocabulary.")
