"""Recipes: which weight matrix is stored at which precision. A recipe is data; `quantize.py` applies it."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from cabochon_convert.quantize import Precision

FLOAT = Precision(32)
AS_STORED = Precision(16)
INT8 = Precision(8, 32)
INT4 = Precision(4, 32, algorithm="mse")
INT2 = Precision(2, 32, symmetric=False, algorithm="mse")

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

    @property
    def is_calibrated(self) -> bool:
        """Whether some matrix is rounded by how its inputs vary on the user's own data."""
        return any(rule.precision.algorithm == "gptq" for rule in self.rules)

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


def _int4(name: str, attention_and_mlp: Precision) -> Recipe:
    """4 bits for the bulk of the decoder.

    The head, the per-layer gates and projections, and the audio encoder keep 8 bits: they are small or sensitive.
    """
    return Recipe(
        name,
        (
            *_INT8.rules,
            Rule("model.language_model.layers.*.self_attn.*", attention_and_mlp),
            Rule("model.language_model.layers.*.mlp.*", attention_and_mlp),
            Rule(PER_LAYER_EMBEDDING, INT4),
        ),
    )


_INT4_MIXED = Recipe(
    "int4-mixed",
    (
        *_int4("", INT4).rules,
        Rule("model.language_model.layers.*.self_attn.v_proj.weight", INT8),
        Rule("model.language_model.layers.*.self_attn.o_proj.weight", INT8),
        Rule("model.language_model.layers.*.mlp.down_proj.weight", INT8),
    ),
)

_INT2_MIXED = Recipe(
    "int2-mixed",
    (
        *_int4("", INT4).rules,
        Rule("model.language_model.layers.*.mlp.gate_proj.weight", INT2),
        Rule("model.language_model.layers.*.mlp.up_proj.weight", INT2),
    ),
)

_ALL = (
    _FLOAT,
    _INT8,
    _int4("int4", INT4),
    _int4("int4-nearest", Precision(4, 32)),
    _int4("int4-asym", Precision(4, 32, False, "mse")),
    _int4("int4-gptq", Precision(4, 32, algorithm="gptq")),
    _int4("int4-gptq-asym", Precision(4, 32, False, "gptq")),
    _int4("int4-b128", Precision(4, 128, algorithm="mse")),
    _INT4_MIXED,
    _INT2_MIXED,
)
RECIPES = {recipe.name: recipe for recipe in _ALL}
"""By name."""
