"""LoRA adapters for the random checkpoint: written by hand, or by peft itself."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
import transformers

RANK = 4
QUERY = "model.language_model.layers.1.self_attn.q_proj"
DOWN = "model.language_model.layers.2.mlp.down_proj"
PREFIX = "base_model.model."


def write_adapter(folder: Path, tensors: dict[str, np.ndarray], **config: Any) -> Path:
    """An adapter folder with these tensors, whose names lack the prefix, and a config with changes."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "down_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(values | config))
    prefixed = {PREFIX + name: np.ascontiguousarray(value) for name, value in tensors.items()}
    safetensors.numpy.save_file(prefixed, folder / "adapter_model.safetensors")
    return folder


def factors(module: str, outputs: int, inputs: int, rank: int = RANK) -> dict[str, np.ndarray]:
    """Random factors of one module."""
    generator = np.random.default_rng(len(module))
    return {
        f"{module}.lora_A.weight": generator.standard_normal((rank, inputs), dtype=np.float32) * inputs**-0.5,
        f"{module}.lora_B.weight": generator.standard_normal((outputs, rank), dtype=np.float32) * 0.2,
    }


def load_plain(checkpoint: Path) -> Any:
    """transformers' model of a checkpoint in float32."""
    model = transformers.Gemma4ForConditionalGeneration.from_pretrained(str(checkpoint), dtype=torch.float32)
    return model.eval()


@contextmanager
def peft_warnings_allowed() -> Iterator[None]:
    """peft warns of tied embeddings, which is what is tested here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def train_adapter(checkpoint: Path, folder: Path, model: Any = None, **settings: Any) -> Any:
    """Have peft put an adapter around the checkpoint, fill it with random values and save it; returns peft's model."""
    import peft

    torch.manual_seed(7)
    with peft_warnings_allowed():
        wrapped = peft.get_peft_model(
            load_plain(checkpoint) if model is None else model, peft.LoraConfig(**({"r": RANK} | settings))
        )
        for name, value in wrapped.named_parameters():
            if "lora_magnitude" in name or "modules_to_save" in name:
                value.data *= 1 + 0.1 * torch.randn_like(value)
            elif "lora_" in name:
                value.data.copy_(0.2 * torch.randn_like(value))  # in place: factors of tied layers share memory
        wrapped.save_pretrained(str(folder))
    return wrapped.eval()
