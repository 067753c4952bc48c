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


def read_quantization(section: Any) -> GemmaQuantization | None:
    """Read config.json's `quantization_config`; None where there is none.

    Raises:
        CheckpointError: another format, an unknown key, or a value that is not implemented.
    """
    if section is None:
        return None
    if not isinstance(section, dict):
        raise CheckpointError(f"{_PLACE} is not an object.")
    method = section.get("quant_method")
    if method != "gemma":
        raise CheckpointError(
            f"the checkpoint is already quantized with {method!r}, expected 'gemma': "
            "convert its unquantized (bf16) original."
        )
    return _read_gemma(section)


def _read_gemma(section: dict[str, Any]) -> GemmaQuantization:
    _refuse_unknown(section, _GEMMA_KEYS, _PLACE)
    overrides = section.get("module_quant_configs") or {}
    kept = section.get("modules_to_not_convert")
    quantizes_embeddings = section.get("quantize_embeddings", False)
    if not isinstance(quantizes_embeddings, bool):
        raise CheckpointError(f"{_PLACE}.quantize_embeddings is {quantizes_embeddings!r}, expected true or false.")
    # Without this list transformers would guess one.
    if not isinstance(kept, list) or not all(isinstance(name, str) for name in kept):
        raise CheckpointError(f"{_PLACE}.modules_to_not_convert is not a list of names.")
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


def _read_bits(value: Any) -> int:
    if type(value) is not int or value not in INTEGER_BITS:
        raise CheckpointError(f"{_PLACE} has num_bits {value!r}, expected 2, 4 or 8.")
    return value


def _refuse_unknown(section: dict[str, Any], known: set[str], place: str) -> None:
    unknown = sorted(str(key) for key in section.keys() - known)
    if unknown:
        raise CheckpointError(f"{place} has the unknown key {unknown[0]}, which may change the maths: update cabochon.")
