"""The checkpoint's files beside config.json: image frontend, generation defaults, tokenizer, chat template."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cabochon.manifest import Prompts, Sampling
from cabochon.prompt import ChatTemplate, Message
from cabochon.tokenizer import Tokenizer
from cabochon_convert.checkpoint import CheckpointError, read_json
from cabochon_convert.config import ModelConfig
from cabochon_convert.vision_config import VisionConfig

TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
CHAT_TEMPLATE_NAME = "chat_template.jinja"

# Instructions as published for Gemma 4: https://ai.google.dev/gemma/docs/capabilities/audio
PROMPTS = Prompts(
    transcribe=(
        "Transcribe the following speech segment in {source} into {source} text.\n\n"
        "Follow these specific instructions for formatting the answer:\n"
        "* Only output the transcription, with no newlines.\n"
        "* When transcribing numbers, write the digits, i.e. write 1.7 and not one point seven, "
        "and write 3 instead of three."
    ),
    transcribe_unknown_language=(
        "Transcribe the following speech segment in its original language.\n\n"
        "Follow these specific instructions for formatting the answer:\n"
        "* Only output the transcription, with no newlines.\n"
        "* When transcribing numbers, write the digits, i.e. write 1.7 and not one point seven, "
        "and write 3 instead of three."
    ),
    translate=(
        "Transcribe the following speech segment in {source}, then translate it into {target}.\n"
        "When formatting the answer, first output the transcription in {source}, then one newline, "
        "then output the string '{target}: ', then the translation in {target}."
    ),
    translation_marker="\n{target}: ",
)

# Generation settings that would change an answer, with the value at which they do not.
_UNUSED_GENERATION_SETTINGS = {
    "bad_words_ids": None,
    "encoder_repetition_penalty": 1.0,
    "forced_eos_token_id": None,
    "min_p": None,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "penalty_alpha": None,
    "repetition_penalty": 1.0,
    "typical_p": 1.0,
}
# How Gemma4ImageProcessor scales, colours and cuts an image, the only way that is implemented.
_IMAGE_FIXED = {
    "do_convert_rgb": True,
    "do_normalize": False,
    "do_rescale": True,
    "do_resize": True,
    "resample": 3,  # bicubic
    "rescale_factor": 1 / 255,
}
# It pays no heed to these, to mean and deviation because it does not normalize.
_IMAGE_INDIFFERENT = {
    "crop_size", "data_format", "default_to_square", "device", "disable_grouping", "do_center_crop", "do_pad",
    "image_mean", "image_processor_type", "image_seq_length", "image_std", "input_data_format", "pad_size",
    "processor_class", "return_tensors", "size",
}  # fmt: skip
SOFT_TOKEN_BUDGETS = (70, 140, 280, 560, 1120)
"""What Gemma4ImageProcessor can be asked for, with any checkpoint."""
DEFAULT_SOFT_TOKENS = 280


@dataclass(frozen=True, slots=True)
class ImageFrontend:
    """How a checkpoint looks at images."""

    soft_token_budgets: tuple[int, ...]
    default_soft_token_budget: int
    note: str
    """One sentence when the checkpoint does not say; empty otherwise."""


def read_image_frontend(folder: Path, vision: VisionConfig) -> ImageFrontend:
    """The image frontend of processor_config.json; without it transformers' defaults, which is said.

    Raises:
        CheckpointError: a setting that is not implemented, or that does not belong to the vision encoder.
    """
    path = folder / "processor_config.json"
    processor = read_json(path) if path.is_file() else {}
    settings = processor.get("image_processor")
    note = ""
    if not isinstance(settings, dict):
        note = f"{path.name} says nothing about images, so transformers' default frontend is used."
        settings = {}
    own = {"patch_size": vision.patch_size, "pooling_kernel_size": vision.pooling_kernel_size}
    unknown = sorted(settings.keys() - own.keys() - _IMAGE_FIXED.keys() - _IMAGE_INDIFFERENT - {"max_soft_tokens"})
    if unknown:
        raise CheckpointError(f"{path} has the unknown image setting {unknown[0]}, which may change what is seen.")
    for key, value in (own | _IMAGE_FIXED).items():
        if settings.get(key, value) != value:
            reason = "config.json has" if key in own else "only this is implemented:"
            raise CheckpointError(f"{path} sets {key} of images to {settings[key]!r}, but {reason} {value!r}.")
    said = (settings.get("max_soft_tokens"), processor.get("image_seq_length"), vision.soft_tokens)
    default = next((budget for budget in said if budget is not None), DEFAULT_SOFT_TOKENS)
    if type(default) is not int or default not in SOFT_TOKEN_BUDGETS:
        choices = ", ".join(map(str, SOFT_TOKEN_BUDGETS))
        raise CheckpointError(f"{folder} makes {default!r} tokens of an image, expected one of {choices}.")
    strip = SOFT_TOKEN_BUDGETS[-1] * vision.pooling_kernel_size
    if vision.position_count < strip:
        raise CheckpointError(
            f"vision_config.position_embedding_size is {vision.position_count}, expected at least {strip}, "
            f"the patches of {SOFT_TOKEN_BUDGETS[-1]} tokens in a row."
        )
    return ImageFrontend(SOFT_TOKEN_BUDGETS, default, note)


def read_sampling(folder: Path, config: ModelConfig, tokenizer: Tokenizer) -> Sampling:
    """generation_config.json, completed by what every Gemma 4 needs.

    The end of a turn stops the answer, and the ends of media are never said.
    """
    generation = _generation_config(folder)
    try:
        eos = generation.get("eos_token_id", list(config.eos_tokens))
        stop_tokens = {*config.eos_tokens, *(eos if isinstance(eos, list) else [eos])}
        stop_tokens |= _end_of_turn(folder, tokenizer)
        default_suppress = [config.end_audio_token, config.end_image_token]
        suppress = generation.get("suppress_tokens") or [token for token in default_suppress if token is not None]
        # transformers samples only when told to; without any file, the published defaults are meant.
        samples = bool(generation.get("do_sample", not generation))
        for token in (*stop_tokens, *suppress):
            if not 0 <= int(token) < config.text.vocabulary_size:
                raise ValueError(f"the token {token} is outside the vocabulary")
        return Sampling(
            temperature=float(generation.get("temperature", 1.0)) if samples else 0.0,
            top_k=int(generation.get("top_k", 64)),
            top_p=float(generation.get("top_p", 0.95)),
            stop_tokens=tuple(sorted(int(token) for token in stop_tokens)),
            suppress_tokens=tuple(sorted(int(token) for token in suppress)),
        )
    except CheckpointError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{folder}/generation_config.json holds impossible settings ({error}).") from None


def read_tokenizer(folder: Path) -> Tokenizer:
    """The checkpoint's tokenizer."""
    path = folder / TOKENIZER_NAME
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: copy the whole checkpoint folder.")
    return Tokenizer(path)


def read_chat_template(folder: Path) -> str:
    """The chat template: a file of its own, or part of tokenizer_config.json as in older checkpoints."""
    path = folder / CHAT_TEMPLATE_NAME
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} is not readable text ({error}).") from None
    template = _tokenizer_config(folder).get("chat_template")
    if not isinstance(template, str):
        raise CheckpointError(f"{folder} has no chat template: copy {CHAT_TEMPLATE_NAME} from the original checkpoint.")
    return template


def check_vocabulary(tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Make sure that the model has an embedding for every token."""
    if tokenizer.largest_token >= config.text.vocabulary_size:
        raise CheckpointError(
            f"{TOKENIZER_NAME} has the token {tokenizer.largest_token}, but the model has embeddings for "
            f"{config.text.vocabulary_size} tokens only: copy the tokenizer that belongs to the checkpoint."
        )


def check_prompts(tokenizer: Tokenizer, template: str, config: ModelConfig) -> None:
    """Make sure that the chat template works, and that it, tokenizer and config agree on where audio goes."""
    chat = ChatTemplate(template, bos_token=tokenizer.token_text(config.text.bos_token))
    chat.render([Message("user", "hello")])
    if config.audio is None:
        return
    places = tokenizer.encode(chat.render([Message("user", "listen", has_audio=True)])).count(config.audio_token)
    if places != 1:
        raise CheckpointError(
            f"the chat template makes {places} places for one clip (audio token {config.audio_token}): "
            "copy tokenizer.json, tokenizer_config.json and chat_template.jinja from the original checkpoint."
        )


def unused_generation_settings(folder: Path) -> tuple[str, ...]:
    """Sentences about generation settings that the decode loop does not implement."""
    generation = _generation_config(folder)
    return tuple(
        f"generation_config.json sets {key} to {generation[key]!r}, which cabochon does not apply."
        for key, default in _UNUSED_GENERATION_SETTINGS.items()
        if generation.get(key, default) != default
    )


def _generation_config(folder: Path) -> dict[str, Any]:
    """The settings that are set: null means the default."""
    path = folder / "generation_config.json"
    return {key: value for key, value in read_json(path).items() if value is not None} if path.is_file() else {}


def _end_of_turn(folder: Path, tokenizer: Tokenizer) -> set[int]:
    """The token that ends a turn, which a fine-tune's generation_config.json often forgets."""
    config = _tokenizer_config(folder)
    # Some versions of transformers write the token at the top, others among the extra tokens.
    nested = [config.get(name) for name in ("extra_special_tokens", "model_specific_special_tokens")]
    sections = [config, *(section for section in nested if isinstance(section, dict))]
    text = next((section["eot_token"] for section in sections if "eot_token" in section), None)
    tokens = tokenizer.encode(text) if isinstance(text, str) and re.fullmatch(r"<\S+>", text) else []
    return set(tokens) if len(tokens) == 1 else set()


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / TOKENIZER_CONFIG_NAME
    return read_json(path) if path.is_file() else {}
