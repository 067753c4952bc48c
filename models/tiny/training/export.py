"""Finishes a trained model: clip bounds from observed ranges, bfloat16, and the files around the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import Gemma4ForConditionalGeneration, GenerationConfig
from transformers.models.gemma4.modeling_gemma4 import Gemma4ClippableLinear

from .architecture import FULL_ATTENTION_HEAD_WIDTH
from .speech import LOG_MEL
from .tokenizer import token_id

Sound = tuple[torch.Tensor, torch.Tensor]
"""Features float32 [batch, frames, mel bins] and their mask bool [batch, frames]."""
CLIP_MARGIN: Final = 0.05
"""Clip bounds lie this share of the observed range outside of it."""


@dataclass(slots=True)
class ObservedRange:
    """Smallest and largest value seen."""

    smallest: float = math.inf
    largest: float = -math.inf

    def observe(self, values: torch.Tensor) -> None:
        self.smallest = min(self.smallest, float(values.min()))
        self.largest = max(self.largest, float(values.max()))

    def with_margin(self) -> tuple[float, float]:
        margin = CLIP_MARGIN * (self.largest - self.smallest)
        return self.smallest - margin, self.largest + margin


def generation_config() -> GenerationConfig:
    """The published sampling defaults, with this vocabulary's ids."""
    return GenerationConfig(
        pad_token_id=token_id("<pad>"),
        bos_token_id=token_id("<bos>"),
        eos_token_id=[token_id("<eos>"), token_id("<turn|>")],
        suppress_tokens=[token_id("<audio|>"), token_id("<image|>")],
        do_sample=True,
        temperature=1.0,
        top_k=64,
        top_p=0.95,
    )


def processor_config() -> dict[str, object]:
    """As published with the E series."""
    return {
        "processor_class": "Gemma4Processor",
        "image_seq_length": 280,
        "audio_seq_length": 750,
        "audio_ms_per_token": 40,
        "feature_extractor": {
            "feature_extractor_type": "Gemma4AudioFeatureExtractor",
            "feature_size": LOG_MEL.mel_bins,
            "fft_length": LOG_MEL.fft_length,
            "fft_overdrive": False,
            "frame_length": LOG_MEL.frame_length,
            "hop_length": LOG_MEL.hop_length,
            "input_scale_factor": 1.0,
            "min_frequency": LOG_MEL.min_frequency,
            "max_frequency": LOG_MEL.max_frequency,
            "mel_floor": LOG_MEL.mel_floor,
            "dither": 0.0,
            "preemphasis": 0.0,
            "preemphasis_htk_flavor": True,
            "padding_side": "right",
            "padding_value": 0.0,
            "per_bin_mean": None,
            "per_bin_stddev": None,
            "return_attention_mask": True,
            "sampling_rate": LOG_MEL.sample_rate,
        },
    }


@torch.no_grad()
def set_clip_bounds(model: Gemma4ForConditionalGeneration, sounds: Iterable[Sound]) -> None:
    """Bounds every clipped linear of the encoder by what its inputs and outputs were on the sounds, plus a margin."""
    encoder = model.model.audio_tower
    linears = [module for module in encoder.modules() if isinstance(module, Gemma4ClippableLinear)]
    inputs: dict[torch.nn.Module, ObservedRange] = {linear: ObservedRange() for linear in linears}
    outputs: dict[torch.nn.Module, ObservedRange] = {linear: ObservedRange() for linear in linears}

    def observe(linear: torch.nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> None:
        inputs[linear].observe(arguments[0])
        outputs[linear].observe(output)

    hooks = [linear.register_forward_hook(observe) for linear in linears]
    for features, mask in sounds:
        encoder(features, mask)
    for hook in hooks:
        hook.remove()
    for linear in linears:
        for kind, observed in (("input", inputs[linear]), ("output", outputs[linear])):
            low, high = observed.with_margin()
            getattr(linear, f"{kind}_min").fill_(low)
            getattr(linear, f"{kind}_max").fill_(high)


def _rewrite_config(path: Path) -> None:
    """States the width of full-attention heads as published configs do, where this transformers lists layers."""
    config = json.loads(path.read_text())
    config["text_config"].pop("per_layer_config", None)
    config["text_config"]["global_head_dim"] = FULL_ATTENTION_HEAD_WIDTH
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def export_checkpoint(
    model: Gemma4ForConditionalGeneration,
    sounds: Iterable[Sound],
    folder: Path,
    write_tokenizer: Callable[[Path], None],
) -> None:
    """Writes a folder that transformers loads; the weights are rounded to bfloat16 before the ranges are observed.

    Args:
        model: trained.
        sounds: for clip bounds.
        folder: takes the checkpoint.
        write_tokenizer: writes the tokenizer's files into the folder.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    set_clip_bounds(model, sounds)
    model.generation_config = generation_config()
    module: torch.nn.Module = model
    module.to(torch.bfloat16)
    model.save_pretrained(folder)
    _rewrite_config(folder / "config.json")
    write_tokenizer(folder)
    (folder / "processor_config.json").write_text(json.dumps(processor_config(), indent=2) + "\n")
