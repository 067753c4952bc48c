from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_checkpoint import e2b_config, small_config, tensor_shapes

from cabochon_convert.quantize import Precision
from cabochon_convert.recipes import (
    EMBEDDING,
    FLOAT,
    INT2,
    INT4,
    INT4_CALIBRATED,
    INT4_LONG,
    INT4_SEARCHED,
    INT4_TABLE,
    INT8,
    INT8_LONG,
    PER_LAYER_EMBEDDING,
    RECIPES,
    Recipe,
    Rule,
)

LAYER = "model.language_model.layers.7."
AUDIO_LAYER = "model.audio_tower.layers.1."
VISION_LAYER = "model.vision_tower.encoder.layers.1."


@pytest.mark.parametrize(
    ("tensor", "int8", "int4"),
    [
        (LAYER + "self_attn.q_proj.weight", INT8, INT4_LONG),
        (LAYER + "mlp.down_proj.weight", INT8, INT4_LONG),
        (LAYER + "per_layer_input_gate.weight", INT8, INT8_LONG),
        (LAYER + "per_layer_projection.weight", INT8, INT8_LONG),
        ("model.language_model.per_layer_model_projection.weight", INT8, INT8_LONG),
        (EMBEDDING, INT8, INT4_LONG),
        (PER_LAYER_EMBEDDING, INT8, INT4_TABLE),
        (AUDIO_LAYER + "self_attn.q_proj.linear.weight", INT8, INT8),
        (AUDIO_LAYER + "feed_forward1.ffw_layer_1.linear.weight", INT8, INT8),
        ("model.embed_audio.embedding_projection.weight", INT8, INT8),
        ("model.audio_tower.subsample_conv_projection.input_proj_linear.weight", FLOAT, FLOAT),
        ("model.audio_tower.output_proj.weight", FLOAT, FLOAT),
        (VISION_LAYER + "self_attn.q_proj.linear.weight", INT8, INT4_SEARCHED),
        (VISION_LAYER + "mlp.down_proj.linear.weight", INT8, INT4_SEARCHED),
        ("model.embed_vision.embedding_projection.weight", INT8, INT8),
        ("model.vision_tower.patch_embedder.input_proj.weight", FLOAT, FLOAT),
    ],
)
def test_every_kind_of_matrix_has_its_precision(tensor: str, int8: Precision, int4: Precision) -> None:
    assert RECIPES["int8"].precision(tensor) == int8
    assert RECIPES["int4"].precision(tensor) == int4
    assert not RECIPES["float"].precision(tensor).is_integer


def test_every_pattern_matches_a_tensor_of_a_real_checkpoint() -> None:
    config = small_config()
    text = config["text_config"]
    layers = text["num_hidden_layers"]
    sharing = range(layers - text["num_kv_shared_layers"], layers)
    recipes = [recipe.for_layers(sharing, keys_as_values=[2]) for recipe in RECIPES.values()]
    names = [*tensor_shapes(config, with_vestigial=False), "lm_head.weight"]  # of an untied checkpoint
    for rule in (rule for recipe in recipes for rule in recipe.rules):
        assert any(Recipe("one rule", (rule,)).precision(name) == rule.precision for name in names), rule.pattern


def test_the_last_rule_that_matches_counts() -> None:
    recipe = Recipe("test", (Rule("a.*", INT8), Rule("a.b", INT4), Rule("*.c", FLOAT)))
    found = [recipe.precision(tensor) for tensor in ("a.a", "a.b", "a.c", "b.c")]
    assert found == [INT8, INT4, FLOAT, FLOAT]


@given(st.text(), st.sampled_from(sorted(RECIPES)))
def test_any_name_has_a_precision(tensor: str, recipe: str) -> None:
    assert isinstance(RECIPES[recipe].precision(tensor), Precision)
    assert Recipe("empty", ()).precision(tensor) == FLOAT


def test_a_rule_for_layers_that_share_caches_leaves_the_others_alone() -> None:
    recipe = RECIPES["int2-small"].for_layers(range(15, 35))
    for layer, bits in ((0, 4), (1, 4), (14, 4), (15, 2), (34, 2)):
        assert recipe.precision(f"model.language_model.layers.{layer}.mlp.up_proj.weight").bits == bits
        assert recipe.precision(f"model.language_model.layers.{layer}.mlp.gate_proj.weight").bits == 4


def test_values_that_are_keys_have_the_precision_of_values() -> None:
    recipe = RECIPES["int4-mixed"].for_layers([], keys_as_values=[2])
    for layer, bits in ((1, 4), (2, 8), (12, 4)):
        assert recipe.precision(f"model.language_model.layers.{layer}.self_attn.k_proj.weight").bits == bits


def stored_bytes(shape: tuple[int, ...], precision: Precision) -> float:
    """Of a matrix in a package."""
    rows, columns = math.prod(shape[:-1]), shape[-1] if shape else 1
    if not precision.is_integer:
        return rows * columns * 4
    zero_point_bits = 0 if precision.symmetric else precision.bits
    block_bits = precision.block_size * precision.bits + precision.scale_bits + zero_point_bits
    return rows * math.ceil(columns / precision.block_size) * block_bits / 8


def test_e2b_with_both_encoders_fits_two_point_six_gigabytes() -> None:
    config = e2b_config()
    text = config["text_config"]
    layers = text["num_hidden_layers"]
    recipe = RECIPES["int2-small"].for_layers(range(layers - text["num_kv_shared_layers"], layers))
    shapes = tensor_shapes(config, with_vestigial=False)
    assert sum(math.prod(shape) for shape in shapes.values()) > 5.1e9
    assert any(name.startswith("model.vision_tower.") for name in shapes)
    # Projections of relative positions are constants of the graph: those of 13 distances, not the matrix.
    stored = {name: shape for name, shape in shapes.items() if not name.endswith("relative_k_proj.weight")}
    precisions = {name: recipe.precision(name) for name in stored}
    # A table's scales have half precision whatever the recipe says.
    precisions[PER_LAYER_EMBEDDING] = replace(precisions[PER_LAYER_EMBEDDING], scale_bits=16)
    # Of the positions of patches only those are kept that the largest image has.
    (positions,) = (name for name in stored if name.endswith("position_embedding_table"))
    axes, _, width = stored[positions]
    stored[positions] = (axes, 1120 * config["vision_config"]["pooling_kernel_size"], width)
    weights = sum(stored_bytes(shape, precisions[name]) for name, shape in stored.items())
    tokenizer, graphs, rotations = 15e6, 2e6, 13e6
    assert weights + tokenizer + graphs + rotations <= 2.6e9


def test_recipes_go_by_their_names() -> None:
    names = ["float", "int8", "int4", "int4-mixed", "int4-calibrated", "int2-mixed", "int2-small"]
    names += ["as-trained", "as-trained-int8"]
    assert [recipe.name for recipe in RECIPES.values()] == names
    assert list(RECIPES) == names


@pytest.mark.parametrize(
    ("recipe", "tensor", "expected"),
    [
        ("int4-mixed", LAYER + "self_attn.v_proj.weight", INT8_LONG),
        ("int4-mixed", LAYER + "self_attn.o_proj.weight", INT8_LONG),
        ("int4-mixed", LAYER + "mlp.down_proj.weight", INT4_LONG),
        ("int4-mixed", EMBEDDING, INT8_LONG),
        ("int4-calibrated", LAYER + "mlp.down_proj.weight", INT4_CALIBRATED),
        ("int4-calibrated", LAYER + "per_layer_input_gate.weight", INT8),
        ("int4-mixed", VISION_LAYER + "mlp.down_proj.linear.weight", INT4_SEARCHED),
        ("int4-calibrated", VISION_LAYER + "mlp.down_proj.linear.weight", INT4_SEARCHED),
        ("int2-mixed", LAYER + "mlp.up_proj.weight", INT2),
        ("int2-mixed", LAYER + "mlp.down_proj.weight", INT4_SEARCHED),
    ],
)
def test_sensitive_matrices_have_more_bits(recipe: str, tensor: str, expected: Precision) -> None:
    assert RECIPES[recipe].precision(tensor) == expected


def test_only_the_calibrated_recipe_needs_calibration() -> None:
    assert [name for name, recipe in RECIPES.items() if recipe.is_calibrated] == ["int4-calibrated"]


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_embedding_tables_are_stored_as_the_runtime_can_look_them_up(recipe: str) -> None:
    for table in (EMBEDDING, PER_LAYER_EMBEDDING):
        precision = RECIPES[recipe].precision(table)
        assert precision.symmetric
        assert precision.bits >= 4
