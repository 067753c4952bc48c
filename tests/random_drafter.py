"""Drafters in the true architecture for small models: random ones, and ones that are right often.

python tests/random_drafter.py CHECKPOINT FOLDER      # of the published shape, for a model of E2B's size
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Gemma4AssistantConfig, Gemma4AssistantForCausalLM, Gemma4TextConfig

_sharing_modes = Gemma4TextConfig.kv_sharing_modes


def _sharing_modes_of_drafters(config: Gemma4TextConfig) -> list[str | None]:
    """transformers 5.23 cannot build its own assistants: it looks for a layer with a cache, and they have none."""
    count: int = config.num_hidden_layers
    modes: list[str | None] = ["reuse"] * count if config.num_kv_shared_layers == count else _sharing_modes.fget(config)
    return modes


Gemma4TextConfig.kv_sharing_modes = property(_sharing_modes_of_drafters)

# What a drafter has to have in common with its model.
SHARED_KEYS = (
    "attention_k_eq_v", "final_logit_softcapping", "global_head_dim", "head_dim", "hidden_activation",
    "max_position_embeddings", "model_type", "num_attention_heads", "num_global_key_value_heads", "num_key_value_heads",
    "rms_norm_eps", "rope_parameters", "sliding_window", "vocab_size",
)  # fmt: skip


def drafter_config(
    target: Mapping[str, Any], *, clusters: int = 48, chosen: int = 6, **text_changes: Any
) -> dict[str, Any]:
    """A drafter's config.json for a model's; no clusters: all tokens are multiplied."""
    text = target["text_config"]
    own = {
        "hidden_size": 32,
        "hidden_size_per_layer_input": 0,
        "intermediate_size": 48,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 4,
        "use_double_wide_mlp": False,
        "vocab_size_per_layer_input": 0,
    }
    return {
        "architectures": ["Gemma4AssistantForCausalLM"],
        "backbone_hidden_size": text["hidden_size"],
        "centroid_intermediate_top_k": chosen,
        "model_type": "gemma4_assistant",
        "num_centroids": clusters or 1,
        "text_config": {key: text[key] for key in SHARED_KEYS if key in text} | own | text_changes,
        "tie_word_embeddings": True,
        "use_ordered_embeddings": bool(clusters),
    }


def random_drafter(config: Mapping[str, Any], seed: int = 0) -> Gemma4AssistantForCausalLM:
    """transformers' own class with random weights whose activations stay near 1."""
    known = {key: value for key, value in config.items() if key not in ("architectures", "model_type")}
    model = Gemma4AssistantForCausalLM(Gemma4AssistantConfig(**known)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("token_ordering"):
                tensor.copy_(torch.randperm(len(tensor), generator=generator))
            elif name.endswith("layer_scalar"):
                tensor.uniform_(0.7, 1.1, generator=generator)
            elif tensor.ndim == 1:
                middle = 0.5 if name.endswith("q_norm.weight") else 1.0
                tensor.normal_(middle, 0.1, generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(0.0, tensor.shape[-1] ** -0.5, generator=generator)
    return model


def pair_drafter(
    config: Mapping[str, Any], followers: Mapping[int, int], table: np.ndarray
) -> Gemma4AssistantForCausalLM:
    """One that knows what often follows each token, and nothing else: its layers add nothing.

    Args:
        config: with the model's hidden size, and without clusters.
        followers: by token.
        table: of the model's token embeddings, unscaled [vocabulary, hidden].
    """
    model = random_drafter(config)
    size = table.shape[1]
    unit = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-9)
    rows = np.zeros_like(unit)
    for token, follower in followers.items():
        rows[follower] += unit[token]
    with torch.no_grad():
        for layer in model.model.layers:
            for matrix in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                matrix.zero_()
            layer.layer_scalar.fill_(1.0)
        model.model.norm.weight.fill_(1.0)
        model.pre_projection.weight.zero_()
        model.pre_projection.weight[:, :size] = torch.eye(size)
        model.model.embed_tokens.weight.copy_(torch.from_numpy(rows.astype(np.float32)))
    return model


def write_drafter(
    folder: Path, config: Mapping[str, Any], model: Gemma4AssistantForCausalLM, dtype: torch.dtype = torch.float32
) -> Path:
    """config.json, generation_config.json and safetensors, as published."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text(json.dumps({"num_assistant_tokens": 2}))
    tensors = {
        name: tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: random_drafter.py CHECKPOINT FOLDER")
    published = drafter_config(
        json.loads((Path(sys.argv[1]) / "config.json").read_text()),
        clusters=2048,
        chosen=32,
        hidden_size=256,
        intermediate_size=2048,
        num_attention_heads=4,
    )
    write_drafter(Path(sys.argv[2]), published, random_drafter(published), torch.bfloat16)
