"""The text section of config.json, resolved layer by layer and read strictly.

The meaning of each key follows transformers' `models/gemma4` and `models/gemma4_unified` (5.23). Only the former may
have per-layer embeddings and experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cabochon_convert.checkpoint import CheckpointError
from cabochon_convert.config_section import (
    BOOKKEEPING,
    read_positive,
    read_positive_number,
    read_token,
    refuse_unknown,
    require_value,
)

_TEXT_KEYS = BOOKKEEPING | {
    "attention_bias", "attention_k_eq_v", "bos_token_id", "enable_moe_block", "eos_token_id",
    "expert_intermediate_size", "final_logit_softcapping", "global_head_dim", "head_dim", "hidden_activation",
    "hidden_size", "hidden_size_per_layer_input", "intermediate_size", "layer_types", "max_position_embeddings",
    "moe_intermediate_size", "num_attention_heads", "num_experts", "num_global_key_value_heads", "num_hidden_layers",
    "num_key_value_heads", "num_kv_shared_layers", "pad_token_id", "partial_rotary_factor", "per_layer_config",
    "rms_norm_eps", "rope_local_base_freq", "rope_parameters", "rope_theta", "sliding_window", "tie_word_embeddings",
    "top_k_experts", "use_bidirectional_attention", "use_double_wide_mlp", "vocab_size", "vocab_size_per_layer_input",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """One decoder layer, with everything that depends on its index resolved."""

    kind: str
    """`sliding` or `full` attention."""
    head_size: int
    kv_heads: int
    intermediate_size: int
    values_are_keys: bool
    """Whether one projection gives both, the values before the keys' norm and rotation."""
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
    """Of one layer; 0 where the model has no per-layer embeddings."""
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

    @property
    def sharing_layers(self) -> range:
        """Layers that read the cache of an earlier one."""
        return range(self.owner_count, len(self.layers))

    @property
    def layers_with_keys_as_values(self) -> tuple[int, ...]:
        """Layers whose one projection gives keys and values."""
        owners = self.layers[: self.owner_count]
        return tuple(index for index, layer in enumerate(owners) if layer.values_are_keys)


def read_text(
    text: dict[str, Any], *, ties_embeddings: bool, sees: bool, has_per_layer_inputs: bool = True
) -> TextConfig:
    """Read config.json's `text_config`.

    Args:
        text: the section.
        ties_embeddings: whether the output matrix is the table of token embeddings.
        sees: whether prompts are to hold images.
        has_per_layer_inputs: whether the architecture knows per-layer embeddings; their size may be 0 even so.

    Raises:
        CheckpointError: an unknown key, or a value that is not implemented.
        KeyError: a key that the graph needs is missing.
    """
    _refuse_experts(text)
    refuse_unknown(text, _TEXT_KEYS, "text_config")
    require_value(text, "hidden_activation", ("gelu_pytorch_tanh",))
    require_value(text, "attention_bias", (False,), default=False)
    if require_value(text, "use_bidirectional_attention", (None, "vision"), default=None) and sees:
        raise CheckpointError(
            "text_config.use_bidirectional_attention is 'vision': tokens of an image look ahead at each other, which "
            "is not implemented, so convert with --no-vision."
        )
    if not has_per_layer_inputs:
        require_value(text, "hidden_size_per_layer_input", (0, None), default=None)
    per_layer_input_size = _read_per_layer_size(text) if has_per_layer_inputs else 0
    cap_key = "final_logit_softcapping"
    return TextConfig(
        vocabulary_size=read_positive(text, "vocab_size"),
        hidden_size=read_positive(text, "hidden_size"),
        per_layer_input_size=per_layer_input_size,
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


def _refuse_experts(text: dict[str, Any]) -> None:
    if require_value(text, "enable_moe_block", (False, True), default=False):
        count = text.get("num_experts")
        experts = f"{count} experts" if type(count) is int else "experts"
        raise CheckpointError(
            f"text_config.enable_moe_block is true: the model is a mixture of {experts} (as Gemma 4 26B-A4B is), which "
            "is not implemented, so convert a dense model of the family."
        )


def _read_per_layer_size(text: dict[str, Any]) -> int:
    size = text["hidden_size_per_layer_input"]
    if type(size) is int and size == 0:
        return 0
    require_value(text, "vocab_size_per_layer_input", (text["vocab_size"],), default=text["vocab_size"])
    return read_positive(text, "hidden_size_per_layer_input")


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
    values_are_keys = require_value(text, "attention_k_eq_v", (False, True), default=False)
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
                values_are_keys=values_are_keys and kind == "full",
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
        # As in transformers' Gemma4TextConfig, another number of heads counts only where values are keys.
        if text.get("attention_k_eq_v") and text.get("num_global_key_value_heads") is not None:
            full["num_key_value_heads"] = text["num_global_key_value_heads"]
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
