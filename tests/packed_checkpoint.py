"""Checkpoints with `quant_method: compressed-tensors`, written by compressed-tensors itself, with random weights."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    apply_quantization_config,
)
from random_checkpoint import COPIED_FILES, TOKENIZER_SOURCE, RandomWeights, small_config, write_random_checkpoint

# What `-qat-w4a16-ct` leaves floating point, with the audio and vision embedders.
IGNORED = ("lm_head", "re:.*vision_tower.*", "re:.*embed_vision.*", "re:.*audio_tower.*", "re:.*embed_audio.*")


@dataclass(frozen=True, slots=True)
class Packing:
    """A scheme and the modules that it is for."""

    targets: tuple[str, ...]
    bits: int
    group_size: int | None
    """None: one scale for a channel."""

    def scheme(self) -> QuantizationScheme:
        strategy = "channel" if self.group_size is None else "group"
        weights = QuantizationArgs(num_bits=self.bits, strategy=strategy, group_size=self.group_size)
        return QuantizationScheme(targets=list(self.targets), weights=weights)


W4A16 = (Packing(("Linear",), 4, 32),)
"""As published."""


def write_packed_checkpoint(folder: Path, packings: tuple[Packing, ...], ignored: tuple[str, ...] = IGNORED) -> Path:
    """A checkpoint of the small model: weights in bfloat16 rounded to the nearest, scales in bfloat16."""
    original = write_random_checkpoint(
        folder.with_name(f"{folder.name}-original"), small_config(), RandomWeights(storage="BF16", with_vestigial=False)
    )
    quiet_transformers()
    model = transformers.Gemma4ForConditionalGeneration.from_pretrained(str(original), dtype=torch.bfloat16)
    shutil.rmtree(original)
    groups = {f"group_{index}": packing.scheme() for index, packing in enumerate(packings)}
    config = QuantizationConfig(config_groups=groups, ignore=list(ignored))
    apply_quantization_config(model, config, show_progress=False)
    for module in quantized_modules(model).values():
        arguments = module.quantization_scheme.weights
        grouped = module.weight.float().unflatten(1, (-1, arguments.group_size or module.weight.shape[1]))
        # As training would find them: not every extreme is kept.
        module.weight_scale.data = (grouped.abs().amax(-1) / 2 ** (arguments.num_bits - 1) * 1.03 + 1e-6).bfloat16()
        module.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))
    for name in COPIED_FILES:
        shutil.copy(TOKENIZER_SOURCE / name, folder / name)
    return folder


def quantized_modules(model: Any) -> dict[str, Any]:
    """By name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "quantization_scheme")}


def quiet_transformers() -> None:
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
