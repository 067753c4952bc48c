"""What config.json says about weights that the checkpoint holds as integers: its `quantization_config`.

It is read as strictly as the rest of config.json: a key that is not known may change the maths.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from cabochon_convert.checkpoint import CheckpointError

INTEGER_BITS = (2, 4, 8)
_PLACE = "config.json's quantization_config"
_GEMMA_KEYS = {"modules_to_not_convert", "module_quant_configs", "num_bits", "quant_method", "quantize_embeddings"}
_INSTEAD = "convert its unquantized (bf16) original"
_COMPRESSED_TENSORS_KEYS = {
    "config_groups",
    "format",
    "global_compression_ratio",
    "ignore",
    "kv_cache_scheme",
    "moe_sparsity_config",
    "quant_method",
    "quantization_status",
    "sparsity_config",
    "transform_config",
    "version",
}
_WEIGHTS_VALUES: dict[str, tuple[Any, ...]] = {
    "type": ("int", None),
    "symmetric": (True, None),
    "dynamic": (False, None),
    "block_structure": (None,),
    # "group" sorts inputs into groups by an index (g_idx); the others only say in which order rounding went on.
    "actorder": (None, False, "weight", "static"),
    "scale_dtype": (None, "torch.bfloat16", "torch.float16", "torch.float32"),
}
_WEIGHTS_KEYS = {*_WEIGHTS_VALUES, "group_size", "num_bits", "observer", "observer_kwargs", "strategy", "zp_dtype"}
_LINEAR_CLASSES = ("Linear", "Module")
_EMBEDDING_CLASSES = ("Embedding", "Gemma4TextScaledWordEmbedding", "Module")
# From transformers' `should_convert_module`: a name ends, or goes on behind a dot.
_BOUNDARY = r"(?:(?<=\.)|(?=\.|$))"


@dataclass(frozen=True, slots=True)
class GemmaQuantization:
    """`quant_method: gemma`, the format of Google's mobile checkpoints; the rules are those of transformers' loader."""

    bits: int
    """Of modules that no override names."""
    quantizes_embeddings: bool
    overrides: re.Pattern[str] | None
    """One named group g0, g1, … for each pattern."""
    override_bits: tuple[int, ...]
    kept: tuple[tuple[str, re.Pattern[str]], ...]
    """Modules that stay floating point: the end of their name, or a pattern from its start."""

    def bits_of(self, module: str, *, is_embedding: bool) -> int | None:
        """Bits of a linear layer's or an embedding's weights; None where they are floating point."""
        if is_embedding and not self.quantizes_embeddings:
            return None
        if any(pattern.match(module) or module.endswith(end) for end, pattern in self.kept):
            return None
        match = self.overrides.search(module) if self.overrides else None
        if match is None:
            return self.bits
        group = next(name for name, text in match.groupdict().items() if text is not None)
        return self.override_bits[int(group[1:])]


@dataclass(frozen=True, slots=True)
class PackedScheme:
    """How the weights of some linear layers are packed."""

    bits: int
    group_size: int | None
    """Consecutive inputs that share a scale; None where a whole row does."""


@dataclass(frozen=True, slots=True)
class ModuleMatch:
    """An entry of `targets` or `ignore`: a module's name or class, or behind `re:` a pattern for a name's start."""

    text: str
    pattern: re.Pattern[str] | None

    def matches_name(self, module: str) -> bool:
        """Whether it names this module itself; parents do not speak for their children."""
        return bool(self.pattern.match(module)) if self.pattern else self.text == module

    def matches_class(self, *, is_embedding: bool) -> bool:
        """Whether it names the class of linear layers or of embeddings, or one that these come from."""
        return self.text in (_EMBEDDING_CLASSES if is_embedding else _LINEAR_CLASSES)


@dataclass(frozen=True, slots=True)
class CompressedTensorsQuantization:
    """`quant_method: compressed-tensors` with the format pack-quantized; rules of compressed-tensors' `utils/match.py`.

    Only symmetric integers of weights, with no rounding of activations or caches.
    """

    schemes: tuple[tuple[ModuleMatch, PackedScheme], ...]
    """In the order in which they count."""
    ignored: tuple[ModuleMatch, ...]

    def scheme_of(self, module: str, *, is_embedding: bool) -> PackedScheme | None:
        """Of a linear layer or an embedding; None where its weights are floating point."""
        if any(match.matches_name(module) or match.matches_class(is_embedding=is_embedding) for match in self.ignored):
            return None
        named = [scheme for match, scheme in self.schemes if match.matches_name(module)]
        of_class = [scheme for match, scheme in self.schemes if match.matches_class(is_embedding=is_embedding)]
        return next(iter(named + of_class), None)


def read_quantization(section: Any) -> GemmaQuantization | CompressedTensorsQuantization | None:
    """Read config.json's `quantization_config`; None where there is none.

    Raises:
        CheckpointError: another format, an unknown key, or a value that is not implemented.
    """
    if section is None:
        return None
    if not isinstance(section, dict):
        raise CheckpointError(f"{_PLACE} is not an object.")
    method = section.get("quant_method")
    if method == "gemma":
        return _read_gemma(section)
    if method == "compressed-tensors":
        return _read_compressed_tensors(section)
    raise CheckpointError(
        f"the checkpoint is already quantized with {method!r}, expected 'gemma' or 'compressed-tensors': {_INSTEAD}."
    )


def _read_gemma(section: dict[str, Any]) -> GemmaQuantization:
    _refuse_unknown(section, _GEMMA_KEYS, _PLACE)
    overrides = section.get("module_quant_configs") or {}
    kept = section.get("modules_to_not_convert")
    quantizes_embeddings = section.get("quantize_embeddings", False)
    if not isinstance(quantizes_embeddings, bool):
        raise CheckpointError(f"{_PLACE}.quantize_embeddings is {quantizes_embeddings!r}, expected true or false.")
    # Without this list transformers would guess one.
    kept = _read_names(kept, f"{_PLACE}.modules_to_not_convert")
    if not isinstance(overrides, dict) or not all(isinstance(override, dict) for override in overrides.values()):
        raise CheckpointError(f"{_PLACE}.module_quant_configs does not map patterns to objects.")
    for override in overrides.values():
        _refuse_unknown(override, {"num_bits"}, f"{_PLACE}.module_quant_configs")
    bits = _read_bits(section.get("num_bits", 4))
    joined = "|".join(f"(?P<g{index}>{pattern})" for index, pattern in enumerate(overrides))
    try:
        return GemmaQuantization(
            bits=bits,
            quantizes_embeddings=quantizes_embeddings,
            overrides=_compile_overrides(joined, len(overrides)) if overrides else None,
            override_bits=tuple(_read_bits(override.get("num_bits", bits)) for override in overrides.values()),
            kept=tuple((name, re.compile(f"(?:{name}){_BOUNDARY}")) for name in kept),
        )
    except (re.error, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{_PLACE} holds a pattern that is no regular expression ({error}).") from None


def _compile_overrides(joined: str, count: int) -> re.Pattern[str]:
    compiled = re.compile(joined)
    if set(compiled.groupindex) != {f"g{index}" for index in range(count)}:
        raise CheckpointError(f"{_PLACE}.module_quant_configs has a pattern with named groups, which is not known.")
    return compiled


def _read_compressed_tensors(section: dict[str, Any]) -> CompressedTensorsQuantization:
    _refuse_unknown(section, _COMPRESSED_TENSORS_KEYS, _PLACE)
    _expect(section, "format", ("pack-quantized",))
    _expect(section, "quantization_status", ("compressed",))
    for key in ("kv_cache_scheme", "moe_sparsity_config", "sparsity_config", "transform_config"):
        _expect(section, key, (None, {}))
    groups = section.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise CheckpointError(f"{_PLACE}.config_groups is not an object with schemes.")
    schemes = {
        target: scheme
        for name, group in groups.items()
        for target, scheme in _read_group(group, f"{_PLACE}.config_groups.{name}")
    }
    # Their order is part of the format: names before patterns.
    ordered = sorted(schemes, key=lambda target: ("re:" in target, target))
    return CompressedTensorsQuantization(
        schemes=tuple((_read_match(target), schemes[target]) for target in ordered),
        ignored=tuple(_read_match(text) for text in _read_names(section.get("ignore") or [], f"{_PLACE}.ignore")),
    )


def _read_group(group: Any, place: str) -> list[tuple[str, PackedScheme]]:
    if not isinstance(group, dict) or not isinstance(group.get("weights"), dict):
        raise CheckpointError(f"{place} does not say how weights are quantized: {_INSTEAD}.")
    _refuse_unknown(group, {"format", "input_activations", "output_activations", "targets", "weights"}, place)
    _expect(group, "format", (None, "pack-quantized"), place)
    for key in ("input_activations", "output_activations"):
        _expect(group, key, (None,), place)
    scheme = _read_scheme(group["weights"], f"{place}.weights")
    return [(target, scheme) for target in _read_names(group.get("targets"), f"{place}.targets")]


def _read_scheme(weights: dict[str, Any], place: str) -> PackedScheme:
    _refuse_unknown(weights, _WEIGHTS_KEYS, place)
    # What is left out counts as 8 bits, symmetric, static integers.
    bits = weights.get("num_bits", 8)
    if type(bits) is not int or bits not in INTEGER_BITS:
        raise CheckpointError(f"{place}.num_bits is {bits!r}, expected 2, 4 or 8: {_INSTEAD}.")
    for key, allowed in _WEIGHTS_VALUES.items():
        _expect(weights, key, allowed, place)
    size = weights.get("group_size")
    inferred = None if size is None else "channel" if size == -1 else "group"
    strategy = weights.get("strategy") or inferred
    if strategy == "channel" and size in (None, -1):
        return PackedScheme(bits, None)
    if strategy == "group" and type(size) is int and size > 0:
        return PackedScheme(bits, size)
    raise CheckpointError(
        f"{place} has the strategy {strategy!r} and group_size {size!r}, expected 'group' or 'channel': {_INSTEAD}."
    )


def _read_match(text: str) -> ModuleMatch:
    if not text.startswith("re:"):
        return ModuleMatch(text, None)
    try:
        return ModuleMatch(text, re.compile(text.removeprefix("re:")))
    except (re.error, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{_PLACE} holds the pattern {text!r}, which is none ({error}).") from None


def _read_names(value: Any, place: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise CheckpointError(f"{place} is not a list of names.")
    return value


def _expect(section: dict[str, Any], key: str, allowed: tuple[Any, ...], place: str = _PLACE) -> None:
    value = section.get(key)
    if not any(type(value) is type(known) and value == known for known in allowed):
        raise CheckpointError(f"{place}.{key} is {value!r}, expected {allowed[0]!r}: {_INSTEAD}.")


def _read_bits(value: Any) -> int:
    if type(value) is not int or value not in INTEGER_BITS:
        raise CheckpointError(f"{_PLACE} has num_bits {value!r}, expected 2, 4 or 8.")
    return value


def _refuse_unknown(section: dict[str, Any], known: set[str], place: str) -> None:
    unknown = sorted(str(key) for key in section.keys() - known)
    if unknown:
        raise CheckpointError(f"{place} has the unknown key {unknown[0]}, which may change the maths: update cabochon.")
