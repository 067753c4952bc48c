"""What an adapter's adapter_config.json says, with the meaning that peft gives it (0.21, `tuners/lora/config.py`).

It is read as strictly as a checkpoint's config.json: a key that is not known and not switched off may change the maths.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from cabochon_convert.checkpoint import CheckpointError

ADAPTER_CONFIG_NAME = "adapter_config.json"
# Keys that say nothing about the maths of inference. Initializations only count where init_lora_weights names them, and
# fan_in_fan_out is switched off by peft itself for the linear layers that Gemma is made of.
_BOOKKEEPING = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "fan_in_fan_out",
    "inference_mode", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "task_type", "unsloth_fixed", "unsloth_version",
}  # fmt: skip
_KNOWN = _BOOKKEEPING | {
    "alpha_pattern", "bias", "ensure_weight_tying", "exclude_modules", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "lora_alpha", "modules_to_save", "peft_type", "r", "rank_pattern", "target_modules",
    "use_dora", "use_rslora",
}  # fmt: skip
# Of all ways to start a training, these leave the model's own weights alone.
_HARMLESS_STARTS = (True, False, None, "eva", "gaussian", "orthogonal")
_HEAD = "lm_head"
_ALL_LINEAR = "all-linear"
_MERGE_FIRST = "merge the adapter with peft's merge_and_unload and convert the result"


@dataclass(frozen=True, slots=True)
class ModuleChoice:
    """Modules, chosen as peft does: by a pattern for the whole name, or by whole names and ends of them."""

    pattern: re.Pattern[str] | None
    names: frozenset[str] = frozenset()

    def holds(self, module: str) -> bool:
        """Whether a module is among them."""
        if self.pattern is not None:
            return self.pattern.fullmatch(module) is not None
        return module in self.names or module.endswith(tuple(f".{name}" for name in self.names))


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Ranks, factors and modules of a LoRA adapter. Modules have the names that they had in training."""

    rank: int
    alpha: float
    divides_by_root: bool
    """`use_rslora`: the factor is alpha / sqrt(rank), not alpha / rank."""
    has_magnitudes: bool
    """`use_dora`: rows of merged matrices get lengths that were trained."""
    ranks: tuple[tuple[re.Pattern[str], int], ...]
    """Ranks of modules that match a pattern, the first match counting."""
    alphas: tuple[tuple[re.Pattern[str], float], ...]
    targets: ModuleChoice | None
    """None for all."""
    excluded: ModuleChoice | None
    layers: frozenset[int] | None
    """None for all."""
    layer_patterns: tuple[re.Pattern[str], ...]
    """Find the index of a layer in a module's name."""
    saved_modules: tuple[str, ...]
    """Ends of the names of modules that were trained and saved whole."""
    includes_head: bool
    """`ensure_weight_tying`: the output matrix was trained with the embeddings, although no list names it."""

    def rank_of(self, module: str) -> int:
        """Rows of lora_A."""
        return next((rank for pattern, rank in self.ranks if pattern.match(module)), self.rank)

    def scaling_of(self, module: str) -> float:
        """What the product of both factors is multiplied by."""
        alpha = next((alpha for pattern, alpha in self.alphas if pattern.match(module)), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.divides_by_root else rank)

    def adapts(self, module: str) -> bool:
        """Whether a module is among those that were trained by factors."""
        if self.includes_head and module == _HEAD:
            return True
        if self.excluded is not None and self.excluded.holds(module):
            return False
        if self.targets is not None and not self.targets.holds(module):
            return False
        return self.layers is None or self._layer_of(module) in self.layers

    def saves(self, tensor: str) -> bool:
        """Whether a tensor belongs to a module that was saved whole."""
        parts = tensor.split(".")
        modules = [".".join(parts[:count]) for count in range(1, len(parts))]
        return any(
            module.endswith(self.saved_modules) or (self.includes_head and module == _HEAD) for module in modules
        )

    def _layer_of(self, module: str) -> int | None:
        for pattern in self.layer_patterns:
            if match := pattern.match(module):
                return int(match["index"])
        return None


def read_lora_config(config: dict[str, Any]) -> LoraConfig:
    """Resolve adapter_config.json.

    Raises:
        CheckpointError: not LoRA, an unknown key, or a value that is wrong or not implemented.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{ADAPTER_CONFIG_NAME} describes a {kind!r} adapter, expected 'LORA': {_MERGE_FIRST}.")
    unknown = sorted(str(key) for key, value in config.items() if key not in _KNOWN and value)
    if unknown:
        raise CheckpointError(
            f"{ADAPTER_CONFIG_NAME} sets {unknown[0]}, which is not implemented and may change the maths: "
            f"{_MERGE_FIRST}."
        )
    start = config.get("init_lora_weights", True)
    if (start.lower() if isinstance(start, str) else start) not in _HARMLESS_STARTS:
        raise CheckpointError(
            f"{ADAPTER_CONFIG_NAME} has init_lora_weights {start!r}, which changes the model's own weights before "
            "training: save the adapter with path_initial_model_for_weight_conversion, or merge it with peft."
        )
    targets = _choice(config, "target_modules")
    layers = _layers(config)
    if layers is not None and targets is not None and targets.pattern is not None:
        raise _wrong("layers_to_transform", config["layers_to_transform"], "null beside a pattern of target_modules")
    return LoraConfig(
        rank=_rank(config.get("r", 8), "r"),
        alpha=_number(config.get("lora_alpha", 8), "lora_alpha"),
        divides_by_root=_flag(config, "use_rslora"),
        has_magnitudes=_flag(config, "use_dora"),
        ranks=tuple((pattern, _rank(value, "rank_pattern")) for pattern, value in _patterns(config, "rank_pattern")),
        alphas=tuple(
            (pattern, _number(value, "alpha_pattern")) for pattern, value in _patterns(config, "alpha_pattern")
        ),
        targets=targets,
        excluded=_choice(config, "exclude_modules"),
        layers=layers,
        layer_patterns=_layer_patterns(config),
        saved_modules=tuple(_names(config.get("modules_to_save") or [], "modules_to_save")),
        includes_head=_flag(config, "ensure_weight_tying"),
    )


def _choice(config: dict[str, Any], key: str) -> ModuleChoice | None:
    value = config.get(key)
    if not value or (key == "target_modules" and value == _ALL_LINEAR):
        return None
    if isinstance(value, str):
        return ModuleChoice(_compile(value, key))
    return ModuleChoice(None, frozenset(_names(value, key)))


def _layers(config: dict[str, Any]) -> frozenset[int] | None:
    value = config.get("layers_to_transform")
    if value is None or value == []:
        return None
    indices = value if isinstance(value, list) else [value]
    if not all(type(index) is int for index in indices):
        raise _wrong("layers_to_transform", value, "indices of layers")
    return frozenset(indices)


def _layer_patterns(config: dict[str, Any]) -> tuple[re.Pattern[str], ...]:
    """peft's `check_target_module_exists`: without a name, the first number behind two others parts is the layer's."""
    value = config.get("layers_pattern")
    if not value:
        return (re.compile(r".*?\.[^.]*\.(?P<index>\d+)\."),)
    names = _names([value] if isinstance(value, str) else value, "layers_pattern")
    return tuple(_compile(rf"(?:^|.*?\.){name}\.(?P<index>\d+)\.", "layers_pattern") for name in names)


def _patterns(config: dict[str, Any], key: str) -> list[tuple[re.Pattern[str], Any]]:
    """peft's `get_pattern_key`: a key is a pattern for the end of a module's name."""
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise _wrong(key, value, "an object")
    return [(_compile(rf"(.*\.)?({pattern})$", key), entry) for pattern, entry in value.items()]


def _compile(pattern: str, key: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise CheckpointError(
            f"{ADAPTER_CONFIG_NAME} has a {key} that is no regular expression ({error}): save the adapter again."
        ) from None


def _names(value: Any, key: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise _wrong(key, value, "a list of names")
    return value


def _flag(config: dict[str, Any], key: str) -> bool:
    value = config.get(key)
    if not isinstance(value, bool | None):
        raise _wrong(key, value, "true or false")
    return bool(value)


def _rank(value: Any, key: str) -> int:
    if type(value) is not int or not 0 < value < 1 << 31:
        raise _wrong(key, value, "a positive integer")
    return value


def _number(value: Any, key: str) -> float:
    # Larger integers do not become floats.
    if type(value) not in (int, float) or not abs(value) < 1 << 1000:
        raise _wrong(key, value, "a finite number")
    return float(value)


def _wrong(key: str, value: Any, expected: str) -> CheckpointError:
    shown = repr(value)
    shown = shown if len(shown) < 60 else f"{shown[:60]}…"
    return CheckpointError(f"{ADAPTER_CONFIG_NAME} has {key} {shown}, expected {expected}: save the adapter again.")
