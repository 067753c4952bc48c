"""What drafters' graphs of all engines share: names of tensors, precisions, rotations, and clusters of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cabochon.manifest import AppliedPrecision, Graph
from cabochon_convert.checkpoint import Checkpoint, CheckpointError
from cabochon_convert.matrices import LinearSettings
from cabochon_convert.recipes import EMBEDDING, HEAD, INT8, Recipe, Rule
from cabochon_convert.text_config import RopeConfig

PREFIX = "model."
TABLE = "model.embed_tokens.weight"
"""Token embeddings, which a drafter only multiplies with."""
PRE_PROJECTION, POST_PROJECTION = "pre_projection.weight", "post_projection.weight"
CENTROIDS = "masked_embedding.centroids.weight"
_MODEL = "model.language_model."


@dataclass(frozen=True, slots=True)
class BuiltDrafter:
    """What the manifest has to say about a drafter."""

    graph: Graph
    applied: Mapping[str, AppliedPrecision]


def drafter_settings(settings: LinearSettings) -> LinearSettings:
    """The rules for the model's matrices, for the drafter's of the same names.

    A drafter has neither integers of its own nor calibration data: 8 bits, or the search for scales, take their place.
    """
    recipe = settings.recipe
    listed = (Rule(_MODEL + "*", INT8), Rule(EMBEDDING, INT8)) if recipe.keeps_integers else recipe.rules
    rules = []
    for rule in listed:
        precision = rule.precision
        if precision.algorithm == "gptq":
            precision = replace(precision, algorithm="mse", symmetric=True)
        if rule.pattern in (EMBEDDING, HEAD):
            rules.append(Rule(TABLE, precision))
        elif rule.pattern.startswith(_MODEL):
            rules.append(Rule(PREFIX + rule.pattern.removeprefix(_MODEL), precision))
        if rule.pattern == _MODEL + "*":
            rules += [Rule(name, precision) for name in (PRE_PROJECTION, POST_PROJECTION, CENTROIDS)]
    return LinearSettings(Recipe(recipe.name, tuple(rules)), settings.accuracy_level)


def describe_applied(applied: Iterable[AppliedPrecision]) -> Mapping[str, AppliedPrecision]:
    """By name, with names that are not those of the model's own matrices."""
    named = (replace(each, tensor=f"drafter.{each.tensor}") for each in applied)
    return {each.tensor: each for each in named}


def rotation_frequencies(rope: RopeConfig, head_size: int) -> npt.NDArray[np.float64]:
    """Radians a position, of the pairs of a head: [head size / 2]."""
    frequencies = np.zeros(head_size // 2)
    rotated = int(rope.rotated_fraction * head_size // 2)
    frequencies[:rotated] = rope.theta ** -(np.arange(0, 2 * rotated, 2) / head_size)
    return frequencies


def read_ordering(checkpoint: Checkpoint, vocabulary_size: int) -> npt.NDArray[np.int64]:
    """Tokens, cluster after cluster.

    Raises:
        CheckpointError: a token is missing, or there twice.
    """
    ordering = checkpoint.read_integers("masked_embedding.token_ordering", (vocabulary_size,), "I64")
    if not np.array_equal(np.sort(ordering), np.arange(vocabulary_size)):
        raise CheckpointError(
            "the drafter's tensor masked_embedding.token_ordering does not list each token once: download it again."
        )
    return ordering.astype(np.int64)
