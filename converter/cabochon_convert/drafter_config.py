"""The config.json of a drafter (`...-it-assistant`), read strictly and held against the model that it drafts for.

The meaning of each key follows transformers' `models/gemma4_assistant` (5.23).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cabochon_convert.checkpoint import CheckpointError
from cabochon_convert.config_section import BOOKKEEPING, read_positive, read_section, refuse_unknown, require_value
from cabochon_convert.text_config import LayerConfig, TextConfig, read_text

ARCHITECTURE = "Gemma4AssistantForCausalLM"
MODEL_TYPE = "gemma4_assistant"

# What a token is called says nothing about the drafter's maths: it sees embeddings and hidden states only.
_TOKEN_KEYS = {
    "audio_token_id", "boa_token_id", "boi_token_id", "bos_token_id", "eoa_token_id", "eoa_token_index", "eoi_token_id",
    "eos_token_id", "image_token_id", "pad_token_id", "video_token_id",
}  # fmt: skip
_TOP_KEYS = BOOKKEEPING | _TOKEN_KEYS | {
    "backbone_hidden_size", "centroid_intermediate_top_k", "num_centroids", "text_config", "tie_word_embeddings",
    "use_ordered_embeddings",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ClusteredHead:
    """An output matrix of which only the rows of some clusters of tokens are multiplied."""

    clusters: int
    chosen: int
    """Clusters whose centroids fit the hidden state best."""


@dataclass(frozen=True, slots=True)
class DrafterConfig:
    """A drafter for one model."""

    text: TextConfig
    """Its layers, each with the `cache_layer` of the model whose keys and values it reads."""
    target_hidden_size: int
    clusters: ClusteredHead | None
    """None where all tokens are multiplied."""

    @property
    def cache_layers(self) -> dict[str, int]:
        """By kind of layer, the model's layer whose keys and values are read."""
        return {layer.kind: layer.cache_layer for layer in self.text.layers}


def read_drafter(config: dict[str, Any], target: TextConfig) -> DrafterConfig:
    """Resolve a drafter's config.json for the model that it is to draft for.

    Raises:
        CheckpointError: another architecture, an unknown key, a value that is not implemented, or another model's.
    """
    found = (config.get("architectures") or [config.get("model_type")])[0]
    if config.get("model_type") != MODEL_TYPE or found not in (ARCHITECTURE, MODEL_TYPE):
        raise CheckpointError(
            f"the drafter's config.json describes {found or 'no model type'}, expected {ARCHITECTURE} (a model whose "
            "name ends in -it-assistant)."
        )
    refuse_unknown(config, _TOP_KEYS, "the drafter's config.json")
    try:
        require_value(config, "tie_word_embeddings", (True,), default=True)
        drafter = DrafterConfig(
            text=_read_text(read_section(config, "text_config"), target),
            target_hidden_size=read_positive(config, "backbone_hidden_size"),
            clusters=_read_clusters(config),
        )
    except KeyError as error:
        raise CheckpointError(f"the drafter's config.json lacks the key {error.args[0]}.") from None
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"the drafter's config.json holds a value of the wrong kind ({error}).") from None
    _refuse_misfit(drafter, target)
    return drafter


def _read_text(text: dict[str, Any], target: TextConfig) -> TextConfig:
    count = read_positive(text, "num_hidden_layers")
    # transformers reads 0 as "all": no layer of a drafter has keys and values of its own.
    require_value(text, "num_kv_shared_layers", (0, count), default=0)
    require_value(text, "hidden_size_per_layer_input", (0, None), default=0)
    require_value(text, "use_double_wide_mlp", (False,), default=False)
    plain = text | {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0}
    drafter = read_text(plain, ties_embeddings=True, sees=False)
    return replace(drafter, layers=tuple(replace(layer, cache_layer=_owner(layer, target)) for layer in drafter.layers))


def _owner(layer: LayerConfig, target: TextConfig) -> int:
    """The model's last layer of a kind that owns a cache."""
    owners = [index for index in range(target.owner_count) if target.layers[index].kind == layer.kind]
    if not owners:
        raise CheckpointError(f"the drafter reads a cache of {layer.kind} attention, and the model has none.")
    return owners[-1]


def _read_clusters(config: dict[str, Any]) -> ClusteredHead | None:
    if not require_value(config, "use_ordered_embeddings", (False, True), default=False):
        return None
    head = ClusteredHead(read_positive(config, "num_centroids"), read_positive(config, "centroid_intermediate_top_k"))
    vocabulary = read_positive(read_section(config, "text_config"), "vocab_size")
    if vocabulary % head.clusters or head.chosen > head.clusters:
        raise CheckpointError(
            f"the drafter's config.json has num_centroids {head.clusters} and centroid_intermediate_top_k "
            f"{head.chosen}: expected a divisor of its {vocabulary} tokens, and at most as many."
        )
    return head


def _refuse_misfit(drafter: DrafterConfig, target: TextConfig) -> None:
    text = drafter.text
    sizes = {
        "hidden size": (drafter.target_hidden_size, target.hidden_size),
        "vocabulary": (text.vocabulary_size, target.vocabulary_size),
        "sliding window": (text.sliding_window, target.sliding_window),
    }
    for layer in text.layers:
        owner = target.layers[layer.cache_layer]
        sizes[f"head size of {layer.kind} attention"] = (layer.head_size, owner.head_size)
        sizes[f"number of key-value heads of {layer.kind} attention"] = (layer.kv_heads, owner.kv_heads)
    for name, (expected, found) in sizes.items():
        if expected != found:
            raise CheckpointError(
                f"the drafter is for a model whose {name} is {expected}, but this one's is {found}: name the drafter "
                "that was published for this very model."
            )
    for kind in drafter.cache_layers:
        if text.rope[kind] != target.rope[kind]:
            raise CheckpointError(
                f"the drafter rotates queries of {kind} attention otherwise than this model its keys: name the drafter "
                "that was published for this very model."
            )
