"""Checkpoints with random weights in Gemma 4's exact architecture: small for parity, E2B's size for memory and time.

    python tests/random_checkpoint.py e2b FOLDER      # 10.2 GB, bf16

The list of tensors is what transformers' own model class says, built on the meta device; the values are made here, a
few megabytes at a time.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
import transformers

REPOSITORY = Path(__file__).resolve().parent.parent
TOKENIZER_SOURCE = REPOSITORY / "models" / "tiny"
COPIED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "processor_config.json",
)
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
POOL_VALUES = 1 << 22
_CONFIGS = {"gemma4": transformers.Gemma4Config, "gemma4_unified": transformers.Gemma4UnifiedConfig}


@dataclass(frozen=True, slots=True)
class RandomWeights:
    """What the weights are to look like."""

    seed: int = 0
    storage: str = "F32"
    shards: int = 1
    with_vestigial: bool = True
    """Write keys and values of the layers that share a cache, as the published checkpoints do."""
    clip_bound: float | None = 2.5
    """Finite clip bounds are drawn around it; None leaves them infinite."""


def small_config(**text_changes: Any) -> dict[str, Any]:
    """A model of 0.6 M parameters with everything that E2B's decoder and encoders have."""
    config: dict[str, Any] = json.loads((REPOSITORY / "tests" / "configs" / "small.json").read_text())
    config["text_config"] |= text_changes
    return config


def dense_config() -> dict[str, Any]:
    """What sets Gemma 4 31B apart: no per-layer embeddings, caches of its own in every layer, values that are the keys
    before their norm in full layers, which have fewer heads of them, images that look ahead, no audio."""
    config = small_config(
        attention_k_eq_v=True,
        hidden_size_per_layer_input=0,
        num_global_key_value_heads=1,
        num_kv_shared_layers=0,
        use_bidirectional_attention="vision",
        use_double_wide_mlp=False,
    )
    config["audio_config"] = None
    config["vision_config"] |= {"use_clipped_linears": False}
    return config


def experts_config() -> dict[str, Any]:
    """What sets Gemma 4 26B-A4B apart from 31B: a mixture of experts beside each MLP."""
    config = dense_config()
    config["text_config"] |= {
        "enable_moe_block": True,
        "moe_intermediate_size": 24,
        "num_experts": 8,
        "top_k_experts": 2,
    }
    return config


def unified_config() -> dict[str, Any]:
    """Gemma 4 12B in small, as transformers 5.23 writes it: no encoders, the decoder takes projected samples and
    pixels; otherwise like the dense one."""
    config: dict[str, Any] = json.loads((REPOSITORY / "tests" / "configs" / "unified.json").read_text())
    return config


def e2b_config() -> dict[str, Any]:
    """E2B's published config, but for the token ids, which are those of the small tokenizer that comes with it."""
    config: dict[str, Any] = json.loads((REPOSITORY / "tests" / "configs" / "e2b.json").read_text())
    small = small_config()
    return config | {key: small[key] for key in small if key.endswith(("_token_id", "_token_index"))}


def write_random_checkpoint(folder: Path, config: dict[str, Any], weights: RandomWeights) -> Path:
    """Write config.json, safetensors (with an index if there are shards) and the tokenizer of models/tiny."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    for name in COPIED_FILES:
        shutil.copy(TOKENIZER_SOURCE / name, folder / name)
    shapes = tensor_shapes(config, with_vestigial=weights.with_vestigial)
    names = sorted(shapes)
    groups = [names[start :: weights.shards] for start in range(weights.shards)]
    weight_map: dict[str, str] = {}
    for index, group in enumerate(groups):
        file = (
            "model.safetensors" if weights.shards == 1 else f"model-{index + 1:05}-of-{weights.shards:05}.safetensors"
        )
        weight_map |= dict.fromkeys(group, file)
        _write_safetensors(folder / file, {name: shapes[name] for name in group}, weights)
    if weights.shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def tensor_shapes(config: dict[str, Any], *, with_vestigial: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a checkpoint."""
    known = {key: value for key, value in config.items() if key not in ("architectures", "model_type")}
    with torch.device("meta"):
        model = getattr(transformers, config["architectures"][0])(_CONFIGS[config["model_type"]](**known))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if name != "lm_head.weight"}
    if with_vestigial:
        shapes |= _vestigial_shapes(model.config.text_config)
    return shapes


def _vestigial_shapes(text: Any) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for index in range(text.num_hidden_layers - text.num_kv_shared_layers, text.num_hidden_layers):
        layer = text.per_layer_config[index]
        prefix = f"model.language_model.layers.{index}.self_attn."
        width = layer.num_key_value_heads * layer.head_dim
        shapes[prefix + "k_proj.weight"] = shapes[prefix + "v_proj.weight"] = (width, text.hidden_size)
        shapes[prefix + "k_norm.weight"] = (layer.head_dim,)
    return shapes


def _write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]], weights: RandomWeights) -> None:
    dtype = DTYPES[weights.storage]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * dtype.itemsize
        header[name] = {"dtype": weights.storage, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = np.random.default_rng(weights.seed)
    pool = generator.standard_normal(POOL_VALUES).astype(np.float32)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            for part in _values(name, shape, generator, pool, weights):
                file.write(part.astype(dtype).tobytes())


def _values(
    name: str, shape: tuple[int, ...], generator: np.random.Generator, pool: np.ndarray, weights: RandomWeights
) -> Iterator[np.ndarray]:
    """Values of one tensor, flattened, in parts; the scale keeps activations near 1, the pad rows are zero."""
    count = int(np.prod(shape))
    if name.endswith(("_min", "_max")):
        bound = np.inf if weights.clip_bound is None else weights.clip_bound * generator.uniform(0.6, 1.4)
        yield np.full(1, -bound if name.endswith("_min") else bound, np.float32)
    elif name.endswith("layer_scalar"):
        yield generator.uniform(0.7, 1.1, count).astype(np.float32)
    elif len(shape) == 1:
        # Attention has no scale, so the norms of queries and keys have to keep logits near 1.
        middle = 0.5 if name.endswith(("q_norm.weight", "k_norm.weight")) else 1.0
        middle = 0.0 if name.endswith(("bias", "per_dim_scale")) else middle
        yield (middle + 0.1 * generator.standard_normal(count)).astype(np.float32)
    else:
        yield from _matrix_values(name, shape, generator, pool)


def _matrix_values(
    name: str, shape: tuple[int, ...], generator: np.random.Generator, pool: np.ndarray
) -> Iterator[np.ndarray]:
    is_table = "embed_tokens" in name
    scale = np.float32((shape[1] if is_table else np.prod(shape[1:])) ** -0.5)
    if name.endswith("position_embedding_table"):
        scale = np.float32(0.5)  # as large as the patches that it is added to
    remaining = int(np.prod(shape))
    if is_table:
        yield np.zeros(shape[1], np.float32)
        remaining -= shape[1]
    while remaining:
        start = int(generator.integers(POOL_VALUES // 2))
        part = pool[start : start + min(remaining, POOL_VALUES - start)] * scale
        remaining -= len(part)
        yield part


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("small", "e2b"):
        sys.exit("usage: random_checkpoint.py small|e2b FOLDER")
    if sys.argv[1] == "small":
        write_random_checkpoint(Path(sys.argv[2]), small_config(), RandomWeights())
    else:
        write_random_checkpoint(Path(sys.argv[2]), e2b_config(), RandomWeights(storage="BF16", clip_bound=40.0))
