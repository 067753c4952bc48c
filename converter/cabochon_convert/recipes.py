"""Recipes: which weight matrix is stored at which precision. A recipe is data; `quantize.py` applies it."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from cabochon_convert.quantize import Precision

FLOAT = Precision(32)
AS_STORED = Precision(16)
INT8 = Precision(8, 32)
INT4 = Precision(4, 32)

EMBEDDING = "model.language_model.embed_tokens.weight"
PER_LAYER_EMBEDDING = "model.language_model.embed_tokens_per_layer.weight"
HEAD = "lm_head.weight"
"""Only in checkpoints that do not tie it to the embedding."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Matrices whose checkpoint name matches the pattern get this precision."""

    pattern: str
    """Shell-style: `*` matches any text."""
    precision: Precision


@dataclass(frozen=True, slots=True)
class Recipe:
    """An ordered list of rules: the last one that matches counts."""

    name: str
    rules: tuple[Rule, ...]

    def precision(self, tensor: str) -> Precision:
        """The precision of one tensor; float32 where no rule matches."""
        matching = [rule.precision for rule in self.rules if fnmatchcase(tensor, rule.pattern)]
        return matching[-1] if matching else FLOAT


_FLOAT = Recipe(
    "float",
    (
        Rule(EMBEDDING, AS_STORED),
        Rule(PER_LAYER_EMBEDDING, AS_STORED),
    ),
)

_INT8 = Recipe(
    "int8",
    (
        Rule("model.language_model.*", INT8),
        Rule(HEAD, INT8),
        Rule("model.audio_tower.layers.*.linear.weight", INT8),
        Rule("model.embed_audio.*", INT8),
    ),
)

# The head, the per-layer gates and projections, and the audio encoder keep 8 bits: they are small or sensitive.
_INT4 = Recipe(
    "int4",
    (
        *_INT8.rules,
        Rule("model.language_model.layers.*.self_attn.*", INT4),
        Rule("model.language_model.layers.*.mlp.*", INT4),
        Rule(PER_LAYER_EMBEDDING, INT4),
    ),
)

RECIPES = {recipe.name: recipe for recipe in (_FLOAT, _INT8, _INT4)}
"""By name."""
