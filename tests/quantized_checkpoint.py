"""Checkpoints that hold integers, as quantization-aware training publishes them, with random weights."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy
from random_checkpoint import (
    COPIED_FILES,
    TOKENIZER_SOURCE,
    RandomWeights,
    small_config,
    tensor_shapes,
    write_random_checkpoint,
)

from cabochon_convert.checkpoint import open_checkpoint, read_json
from cabochon_convert.config import read_config
from cabochon_convert.integer_formats import open_integers
from cabochon_convert.progress import Silence
from cabochon_convert.quantize import dequantize_matrix
from cabochon_convert.recipes import RECIPES
from cabochon_convert.trained_integers import TrainedIntegers, to_blocks

# As published with the mobile checkpoint of E2B, but for the first layer whose MLP has 2 bits (15 there).
MOBILE: dict[str, Any] = {
    "quant_method": "gemma",
    "num_bits": 4,
    "quantize_embeddings": True,
    "modules_to_not_convert": [
        "model.vision_tower.patch_embedder",
        "model.audio_tower.subsample_conv_projection",
        "model.audio_tower.output_proj",
        "relative_k_proj",
        "model.embed_audio",
        "model.embed_vision",
        "per_layer_model_projection",
    ],
    "module_quant_configs": {
        "^lm_head$": {"num_bits": 2},
        r"audio_tower(?!.*lconv1d\.linear_start)": {"num_bits": 2},
        r"audio_tower\.layers\.\d+\.lconv1d\.linear_start\.": {"num_bits": 4},
        r"language_model\.embed_tokens$": {"num_bits": 2},
        r"language_model\.embed_tokens_per_layer$": {"num_bits": 4},
        r"language_model\.layers\.[0-3]\.mlp\.": {"num_bits": 4},
        r"language_model\.layers\.\d+\.mlp\.": {"num_bits": 2},
        r"language_model\.layers\.\d+\.per_layer_input_gate$": {"num_bits": 8},
        r"language_model\.layers\.\d+\.per_layer_projection$": {"num_bits": 8},
        r"language_model\.layers\.\d+\.self_attn\.": {"num_bits": 4},
        "vision_tower": {"num_bits": 8},
    },
}
TABLES = ("model.language_model.embed_tokens", "model.language_model.embed_tokens_per_layer")


@dataclass(frozen=True, slots=True)
class MobileWeights:
    """What differs between mobile checkpoints."""

    seed: int = 0
    activation_scale: float = 0.05
    """Scales of inputs and outputs are drawn around it; 0 for a checkpoint that is not calibrated."""
    head_is_embedding: bool = True
    """As published: the output matrix is stored twice, with the same integers."""
    scale_per_layer: bool = True
    """As published: a row of the per-layer embeddings has one scale for each layer."""


def mobile_bits(module: str) -> int | None:
    """Bits of a weight matrix, said independently of the code under test."""
    if any(module.startswith(name) or module.endswith(name) for name in MOBILE["modules_to_not_convert"]):
        return None
    patterns = MOBILE["module_quant_configs"].items()
    return next((int(entry["num_bits"]) for pattern, entry in patterns if re.search(pattern, module)), 4)


def untied_config() -> dict[str, Any]:
    """The small model with an output matrix of its own."""
    config = small_config(tie_word_embeddings=False)
    return config | {"tie_word_embeddings": False}


def write_mobile_checkpoint(folder: Path, weights: MobileWeights) -> Path:
    """A checkpoint of the small model with `quant_method: gemma`."""
    config = untied_config()
    tensors = random_tensors(folder, config, weights.seed)
    generator = np.random.default_rng(weights.seed)
    layers = config["text_config"]["num_hidden_layers"]
    if weights.head_is_embedding:
        tensors["lm_head.weight"] = tensors[f"{TABLES[0]}.weight"]
    for name in [name for name in tensors if is_linear_or_table(name, tensors[name])]:
        module = name.removesuffix(".weight")
        bits = mobile_bits(module)
        if bits is None:
            continue
        groups = layers if weights.scale_per_layer and module == TABLES[1] else 1
        values, scales = round_per_group(tensors.pop(name), bits, groups)
        if module in TABLES:
            tensors |= {f"{module}.embedding_quantized": pack_mobile(values, bits), f"{module}.embedding_scale": scales}
            continue
        tensors |= {f"{module}.weight": pack_mobile(values, bits), f"{module}.weight_scale": scales}
        for side in ("input", "output"):
            scale = weights.activation_scale * generator.uniform(0.5, 1.5)
            tensors[f"{module}.{side}_activation_scale"] = np.array(scale, np.float32)
    for index in range(layers):
        for part in "kv":
            name = f"model.language_model.layers.{index}.self_attn.{part}_cache_scale"
            tensors[name] = np.array(0.1, np.float32)
    return write_checkpoint(folder, config | {"quantization_config": MOBILE, "dtype": "float32"}, tensors)


def write_q4_0_checkpoint(folder: Path, *, embedding_on_grid: bool, seed: int = 0) -> Path:
    """A checkpoint of the small model as `-qat-q4_0-unquantized` publishes them: bfloat16, the decoder on Q4_0's grid.

    The audio encoder stays off it, and the token embedding with its output matrix where the flag says so.
    """
    config = small_config()
    tensors = random_tensors(folder, config, seed)
    del tensors["lm_head.weight"]
    for name in tensors:
        if is_on_q4_0_grid(name, tensors[name], embedding_on_grid=embedding_on_grid):
            integers, steps = round_to_q4_0(tensors[name].reshape(-1, 32))
            tensors[name] = (integers * steps[:, None]).reshape(tensors[name].shape)
    stored = {name: values.astype(ml_dtypes.bfloat16) for name, values in tensors.items()}
    return write_checkpoint(folder, config | {"dtype": "bfloat16"}, stored)


def is_on_q4_0_grid(name: str, values: np.ndarray, *, embedding_on_grid: bool) -> bool:
    is_matrix = is_linear_or_table(name, values) and name.startswith("model.language_model.")
    return is_matrix and (embedding_on_grid or name != f"{TABLES[0]}.weight")


def round_to_q4_0(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """GGML's quantize_row_q4_0_ref: integers from -8 to 7 [blocks, 32] and steps in half precision [blocks]."""
    extremes = weights[np.arange(len(weights)), np.abs(weights).argmax(axis=1)]
    unrounded = (extremes / np.float32(-8)).astype(np.float32)
    # The inverse of a subnormal number may be infinite, which GGML leaves undefined.
    normal = np.abs(unrounded) >= np.finfo(np.float32).tiny
    inverse = np.divide(1, unrounded, out=np.zeros_like(unrounded), where=normal)
    integers = np.minimum(15, np.trunc(weights * inverse[:, None] + 8.5)) - 8
    return integers.astype(np.float32), unrounded.astype(np.float16).astype(np.float32)


def to_bfloat16(weights: np.ndarray) -> np.ndarray:
    """Rounded, as float32."""
    return weights.astype(ml_dtypes.bfloat16).astype(np.float32)


def random_tensors(folder: Path, config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Floating-point weights of a model; the folder is not there afterwards."""
    write_random_checkpoint(folder, config, RandomWeights(seed=seed))
    tensors = dict(safetensors.numpy.load_file(folder / "model.safetensors"))
    shutil.rmtree(folder)
    shape = tensor_shapes(config, with_vestigial=False)[f"{TABLES[0]}.weight"]
    generator = np.random.default_rng(seed)
    tensors["lm_head.weight"] = (generator.standard_normal(shape) * shape[1] ** -0.5).astype(np.float32)
    return tensors


def is_linear_or_table(name: str, values: np.ndarray) -> bool:
    return name.endswith(".weight") and values.ndim == 2


def round_per_group(weights: np.ndarray, bits: int, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Signed integers [rows, columns] and scales [rows, groups]."""
    grouped = weights.reshape(len(weights), groups, -1)
    scales = (np.abs(grouped).max(axis=-1) / 2 ** (bits - 1) + 1e-6).astype(np.float32)
    integers = np.clip(np.rint(grouped / scales[..., None]), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return integers.astype(np.int8).reshape(weights.shape), scales


def pack_mobile(values: np.ndarray, bits: int) -> np.ndarray:
    """8 bits as they are; of fewer, several in a byte, the first in the lowest bits."""
    if bits == 8:
        return values
    per_byte = 8 // bits
    unsigned = (values.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    padded = np.pad(unsigned, ((0, 0), (0, -unsigned.shape[1] % per_byte)))
    parts = padded.reshape(len(padded), -1, per_byte)
    return np.bitwise_or.reduce(parts << (np.arange(per_byte, dtype=np.uint8) * bits), axis=-1).astype(np.uint8)


def write_checkpoint(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name in COPIED_FILES:
        shutil.copy(TOKENIZER_SOURCE / name, folder / name)
    contiguous = {name: values.copy(order="C") for name, values in tensors.items()}
    safetensors.numpy.save_file(contiguous, folder / "model.safetensors", {"format": "pt"})
    return folder


def integers_of(checkpoint: Path) -> TrainedIntegers:
    config = read_config(read_json(checkpoint / "config.json"))
    integers = open_integers(open_checkpoint(checkpoint), config, RECIPES["as-trained"], Silence())
    assert integers is not None
    return integers


def stored_weights(integers: TrainedIntegers, tensor: str, shape: tuple[int, int]) -> np.ndarray:
    """What the package's blocks stand for."""
    precision = integers.precision(tensor, shape)
    assert precision is not None
    parts = [to_blocks(part, precision) for part in integers.rows(tensor, shape, range(shape[0]))]
    return np.concatenate([dequantize_matrix(part, shape[1], precision) for part in parts])
