"""Recipes: which weight matrix is stored at which precision. A recipe is data; `quantize.py` applies it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from cabochon_convert.quantize import Precision

FLOAT = Precision(32)
AS_STORED = Precision(16)
INT8 = Precision(8, 32)
INT4 = Precision(4, 32)
INT4_SEARCHED = Precision(4, 32, algorithm="mse")
INT4_CALIBRATED = Precision(4, 32, symmetric=False, algorithm="gptq")
INT2 = Precision(2, 32, symmetric=False, algorithm="mse")
INT8_LONG = Precision(8, 128)
INT4_LONG = Precision(4, 128, algorithm="mse")
INT8_SMALL = Precision(8, 128, scale_bits=16)
INT4_SMALL = Precision(4, 128, algorithm="mse", scale_bits=16)
INT4_TABLE = Precision(4, 256, algorithm="mse")
INT2_SMALL = Precision(2, 128, symmetric=False, algorithm="mse", scale_bits=16)
SHARING = "{sharing}"
"""In a pattern: the number of a layer that reads another layer's cache."""
KEYS_AS_VALUES = "{keys-as-values}"
"""In a pattern: the number of a layer whose one projection gives keys and values."""

EMBEDDING = "model.language_model.embed_tokens.weight"
PER_LAYER_EMBEDDING = "model.language_model.embed_tokens_per_layer.weight"
HEAD = "lm_head.weight"
"""Only in checkpoints that do not tie it to the embedding."""
VISION_LAYERS = "model.vision_tower.encoder.layers.*.linear.weight"
"""All layers of the vision encoder."""


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
    keeps_integers: bool = False
    """Whether it is for checkpoints with integers: these stay what they are, the rules are for all other matrices."""

    @property
    def is_calibrated(self) -> bool:
        """Whether some matrix is rounded by how its inputs vary on the user's own data."""
        return any(rule.precision.algorithm == "gptq" for rule in self.rules)

    def for_layers(self, sharing: Sequence[int], keys_as_values: Sequence[int] = ()) -> Recipe:
        """The recipe for one model.

        Args:
            sharing: layers that read another layer's cache.
            keys_as_values: layers whose one projection gives keys and values.
        """
        rules = list(self.rules)
        for place, layers in ((SHARING, sharing), (KEYS_AS_VALUES, keys_as_values)):
            rules = [
                replace(rule, pattern=rule.pattern.replace(place, number))
                for rule in rules
                for number in (map(str, layers) if place in rule.pattern else [""])
            ]
        return replace(self, rules=tuple(rules))

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
        Rule(VISION_LAYERS, INT8),
        Rule("model.embed_vision.*", INT8),
    ),
)


def _int4_rules(attention_and_mlp: Precision) -> tuple[Rule, ...]:
    """4 bits for the bulk of the decoder, and for the vision encoder, where 8 would cost 75 MB more of E2B.

    The head, the per-layer gates and projections, and the audio encoder keep 8 bits: they are small or sensitive.
    """
    return (
        *_INT8.rules,
        Rule("model.language_model.layers.*.self_attn.*", attention_and_mlp),
        Rule("model.language_model.layers.*.mlp.*", attention_and_mlp),
        Rule(PER_LAYER_EMBEDDING, INT4),
        # Speech says nothing about the inputs of the vision encoder.
        Rule(VISION_LAYERS, INT4_SEARCHED),
    )


# Long blocks with one scale each are what onnxruntime multiplies fastest, and loads fastest.
_LONG_RULES = (
    *_INT8.rules,
    Rule("model.language_model.*", INT8_LONG),
    Rule(HEAD, INT8_LONG),
    Rule("model.language_model.layers.*.self_attn.*", INT4_LONG),
    Rule("model.language_model.layers.*.mlp.*", INT4_LONG),
    Rule(PER_LAYER_EMBEDDING, INT4_TABLE),
    Rule(VISION_LAYERS, INT4_SEARCHED),
)

# Small and fast, and it shows: on models/tiny (benchmarks/transcripts.py, 512 utterances a condition) the word error
# rate rises by 0.5 to 2.1 points and chrF falls by 1.3 to 3.6.
_INT4 = Recipe("int4", (*_LONG_RULES, Rule(EMBEDDING, INT4_LONG), Rule(HEAD, INT4_LONG)))

# The default, because it is the smallest that keeps within a point of both on every condition: 8 bits for the head and
# for what attention writes into the residual stream, short blocks for the per-layer table. All three are needed.
_INT4_MIXED = Recipe(
    "int4-mixed",
    (
        *_LONG_RULES,
        Rule("model.language_model.layers.*.self_attn.v_proj.weight", INT8_LONG),
        Rule(f"model.language_model.layers.{KEYS_AS_VALUES}.self_attn.k_proj.weight", INT8_LONG),
        Rule("model.language_model.layers.*.self_attn.o_proj.weight", INT8_LONG),
        Rule(PER_LAYER_EMBEDDING, INT4),
    ),
)

_INT4_CALIBRATED = Recipe("int4-calibrated", _int4_rules(INT4_CALIBRATED))

_INT2_MIXED = Recipe(
    "int2-mixed",
    (
        *_int4_rules(INT4_SEARCHED),
        Rule("model.language_model.layers.*.mlp.gate_proj.weight", INT2),
        Rule("model.language_model.layers.*.mlp.up_proj.weight", INT2),
    ),
)

# E2B with both encoders in 2.6 GB, as Google's own file: at bare 4 bits its parameters take 2.55. Blocks are long, and
# what gives way is half of the widest part of the layers that fill no cache: what they get wrong stays their own. On
# models/tiny (320 unseen sentences) the word error rate rises by 0.8 points and chrF falls by 3.1; with 2 bits for the
# gates as well it would be 3.1 and 5.6.
_INT2_SMALL = Recipe(
    "int2-small",
    (
        Rule("model.language_model.*", INT4_SMALL),
        Rule("model.language_model.per_layer_model_projection.weight", INT8_SMALL),
        Rule("model.language_model.layers.*.per_layer_*", INT8_SMALL),
        Rule(f"model.language_model.layers.{SHARING}.mlp.up_proj.weight", INT2_SMALL),
        Rule(EMBEDDING, INT4_SMALL),
        Rule(HEAD, INT4_SMALL),
        Rule(PER_LAYER_EMBEDDING, INT4_TABLE),
        Rule("model.audio_tower.layers.*.linear.weight", INT4_SMALL),
        Rule("model.embed_audio.*", INT8_SMALL),
        Rule(VISION_LAYERS, INT4_SMALL),
        Rule("model.embed_vision.*", INT8_SMALL),
    ),
)

# Quantization-aware training leaves integers; what it kept as floating point was kept for a reason.
_AS_TRAINED = Recipe("as-trained", _FLOAT.rules, keeps_integers=True)

_AS_TRAINED_INT8 = Recipe("as-trained-int8", _INT8.rules, keeps_integers=True)

_ALL = (_FLOAT, _INT8, _INT4, _INT4_MIXED, _INT4_CALIBRATED, _INT2_MIXED, _INT2_SMALL, _AS_TRAINED, _AS_TRAINED_INT8)
RECIPES = {recipe.name: recipe for recipe in _ALL}
"""By name."""
DEFAULT_RECIPE = _INT4_MIXED.name
