"""The Gemma 4 E architecture in miniature, with an initialization that suits narrow layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from transformers import Gemma4Config, Gemma4ForConditionalGeneration

from .tokenizer import VOCABULARY_SIZE, token_id

HIDDEN_SIZE: Final = 160
PER_LAYER_EMBEDDING_WIDTH: Final = 32
FULL_ATTENTION_HEAD_WIDTH: Final = 64
_POST_NORMS: Final = (
    "post_attention_layernorm.weight",
    "post_feedforward_layernorm.weight",
    "post_per_layer_input_norm.weight",
)


def _text_settings(vocabulary_size: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary_size,
        "vocab_size_per_layer_input": vocabulary_size,
        "hidden_size": HIDDEN_SIZE,
        "hidden_size_per_layer_input": PER_LAYER_EMBEDDING_WIDTH,
        "intermediate_size": 320,
        "use_double_wide_mlp": True,
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
        "sliding_window": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "global_head_dim": FULL_ATTENTION_HEAD_WIDTH,
        "final_logit_softcapping": 30.0,
        "max_position_embeddings": 2048,
        "pad_token_id": token_id("<pad>"),
        "bos_token_id": token_id("<bos>"),
        "eos_token_id": token_id("<eos>"),
    }


def _audio_settings() -> dict[str, Any]:
    return {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        # The second number sets the cost of the convolutions, which is most of the encoder's on a CPU.
        "subsampling_conv_channels": [128, 8],
        "output_proj_dims": HIDDEN_SIZE,
    }


def tiny_config(vocabulary_size: int = VOCABULARY_SIZE) -> Gemma4Config:
    """Everything E2B has except vision.

    Both attention types occur among the layers with a cache of their own and among those that share one. The widths of
    all linear inputs are multiples of 32, for quantization in blocks.
    """
    special_tokens: dict[str, Any] = {
        "boi_token_id": token_id("<|image>"),
        "image_token_id": token_id("<|image|>"),
        "eoi_token_id": token_id("<image|>"),
        "boa_token_id": token_id("<|audio>"),
        "audio_token_id": token_id("<|audio|>"),
        "eoa_token_id": token_id("<audio|>"),
        "eoa_token_index": token_id("<audio|>"),  # the name that transformers reads; published configs carry both
        "video_token_id": token_id("<|video|>"),
        "eos_token_id": [token_id("<eos>"), token_id("<turn|>")],
    }
    return Gemma4Config(
        text_config=_text_settings(vocabulary_size),
        audio_config=_audio_settings(),
        vision_config=None,
        dtype="float32",
        **special_tokens,
    )


def build_model(seed: int, vocabulary_size: int = VOCABULARY_SIZE) -> Gemma4ForConditionalGeneration:
    """A fresh model in float32."""
    torch.manual_seed(seed)
    model = Gemma4ForConditionalGeneration(tiny_config(vocabulary_size))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _initialize(name, parameter)
    return model


def reopen_model(checkpoint: Path) -> Gemma4ForConditionalGeneration:
    """A published model in float32, its clip bounds opened for training to go on."""
    model: Gemma4ForConditionalGeneration = Gemma4ForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32
    )
    for name, buffer in model.named_buffers():
        if name.endswith(("_min", "_max")):
            buffer.fill_(-torch.inf if name.endswith("_min") else torch.inf)
    return model.train()


def _initialize(name: str, parameter: torch.nn.Parameter) -> None:
    """Scales by width: the library's fixed 0.02 is meant for layers ten times as wide."""
    if "embed_tokens_per_layer" in name:
        _initialize_embedding(parameter, PER_LAYER_EMBEDDING_WIDTH)
    elif "embed_tokens" in name:
        _initialize_embedding(parameter, HIDDEN_SIZE)
    elif parameter.ndim == 2:  # linears, [out, in]
        parameter.normal_(0.0, parameter.shape[1] ** -0.5)
    elif name.endswith(("q_norm.weight", "k_norm.weight")):
        # Attention scores are not divided by sqrt(head_dim): each side's norm weight takes half of that.
        parameter.fill_(parameter.numel() ** -0.25)
    elif name.endswith(_POST_NORMS):
        parameter.fill_(0.5)


def _initialize_embedding(parameter: torch.nn.Parameter, width: int) -> None:
    parameter.normal_(0.0, width**-0.5)
    parameter[token_id("<pad>")] = 0.0
