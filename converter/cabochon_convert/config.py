"""The checkpoint's config.json, read strictly.

A key that is not known may change the maths, so it is an error, and so is a known key with a value that the graphs do
not implement. The meaning of each key follows transformers' `models/gemma4` and `models/gemma4_unified` (5.23).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cabochon_convert.audio_config import AudioConfig, WaveformConfig, read_audio, read_waveform
from cabochon_convert.checkpoint import CheckpointError
from cabochon_convert.config_section import (
    BOOKKEEPING,
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
from cabochon_convert.text_config import TextConfig, read_text
from cabochon_convert.vision_config import VisionConfig, read_vision

UNIFIED = "gemma4_unified"
ARCHITECTURES = {"gemma4": "Gemma4ForConditionalGeneration", UNIFIED: "Gemma4UnifiedForConditionalGeneration"}
"""By model type, transformers' class: encoders for sound and images, or none (12B)."""

_TOP_KEYS = BOOKKEEPING | {
    "audio_config", "audio_token_id", "boa_token_id", "boi_token_id", "eoa_token_id", "eoa_token_index",
    "eoi_token_id", "eos_token_id", "image_token_id", "text_config", "tie_word_embeddings", "video_token_id",
    "vision_config", "vision_soft_tokens_per_image", "pad_token_id", "bos_token_id", "quantization_config",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The whole model."""

    architecture: str
    """One of `ARCHITECTURES`."""
    text: TextConfig
    audio: AudioConfig | WaveformConfig | None
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
    architecture = _read_architecture(config)
    refuse_unknown(config, _TOP_KEYS, "config.json")
    try:
        ties_embeddings = require_value(config, "tie_word_embeddings", (True, False), default=True)
        is_unified = architecture == ARCHITECTURES[UNIFIED]
        sees = with_vision and bool(config.get("vision_config"))
        hears = with_audio and bool(config.get("audio_config"))
        if is_unified and sees:
            raise CheckpointError(
                f"config.json describes {architecture} (Gemma 4 12B), which sees without an encoder, and that is not "
                "implemented: convert with --no-vision."
            )
        text = read_text(
            read_section(config, "text_config"),
            ties_embeddings=ties_embeddings,
            sees=sees,
            has_per_layer_inputs=not is_unified,
        )
        read_hearing = read_waveform if is_unified else read_audio
        audio = read_hearing(read_section(config, "audio_config")) if hears else None
        vision = read_vision(config) if sees else None
        end_image = config.get("eoi_token_id")
        model = ModelConfig(
            architecture=architecture,
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


def _read_architecture(config: dict[str, Any]) -> str:
    architectures, model_type = config.get("architectures"), config.get("model_type")
    found = architectures[0] if isinstance(architectures, list) and architectures else None
    expected = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if expected is None or found not in (expected, None):
        raise CheckpointError(
            f"config.json describes {found or model_type or 'no model type'}, expected "
            f"{' or '.join(ARCHITECTURES.values())} (Gemma 4)."
        )
    return expected


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
