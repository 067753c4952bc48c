"""Reading one section of config.json strictly: what is not known, missing or impossible is refused by name."""

from __future__ import annotations

import math
from typing import Any

from cabochon_convert.checkpoint import CheckpointError

_REQUIRED = object()

BOOKKEEPING = {
    "_attn_implementation_autoset", "_name_or_path", "architectures", "attention_dropout", "chunk_size_feed_forward",
    "dtype", "id2label", "initializer_range", "is_encoder_decoder", "label2id", "model_type", "output_attentions",
    "output_hidden_states", "problem_type", "return_dict", "torch_dtype", "transformers_version", "unsloth_fixed",
    "unsloth_version", "use_cache",
}  # fmt: skip
"""Keys that transformers and fine-tuning tools write and that say nothing about the maths of inference."""


def read_section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A section of the config, which must be an object."""
    section = config[name]
    if not isinstance(section, dict):
        raise CheckpointError(f"config.json's {name} is not an object.")
    return section


def refuse_unknown(section: dict[str, Any], known: set[str], place: str) -> None:
    """CheckpointError for the first key that is not known; `place` names the section."""
    unknown = sorted(section.keys() - known)
    if unknown:
        raise CheckpointError(
            f"{place} has the unknown key {unknown[0]}, which may change the maths: "
            "remove it if it does not, or update cabochon."
        )


def require_value(section: dict[str, Any], key: str, allowed: tuple[Any, ...], default: Any = _REQUIRED) -> Any:
    """The value of a key, which must be one of those allowed."""
    value = section[key] if default is _REQUIRED else section.get(key, default)
    # 1 == True in Python, but not in a config.
    if not any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in allowed):
        expected = " or ".join(repr(choice) for choice in allowed)
        raise CheckpointError(f"config.json's {key} is {value!r}, but only {expected} is implemented.")
    return value


def read_positive(section: dict[str, Any], key: str) -> int:
    """An integer above zero; KeyError where the key is missing."""
    value = section[key]
    if type(value) is not int or value <= 0:
        raise CheckpointError(f"config.json's {key} is {value!r}, expected a positive integer.")
    return value


def read_positive_number(section: dict[str, Any], key: str) -> float:
    """A finite number above zero; KeyError where the key is missing."""
    value = section[key]
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise CheckpointError(f"config.json's {key} is {value!r}, expected a positive number.")
    return float(value)


def read_token(value: Any, default: int) -> int:
    """A token id; null means the published one."""
    if value is None:
        return default
    if type(value) is not int:
        raise CheckpointError(f"config.json has the token {value!r}, expected an integer.")
    return value


def read_token_list(value: Any) -> tuple[int, ...]:
    """One token id or several; null means the published end of a text."""
    return tuple(read_token(token, 1) for token in value) if isinstance(value, list) else (read_token(value, 1),)
