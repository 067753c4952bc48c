from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from quantized_checkpoint import MOBILE, mobile_bits, pack_mobile, round_per_group, untied_config
from random_checkpoint import tensor_shapes
from refusals import refused

from cabochon_convert.checkpoint import CheckpointError, open_checkpoint
from cabochon_convert.config import read_config
from cabochon_convert.gemma_integers import GemmaIntegers
from cabochon_convert.quantization_config import GemmaQuantization, read_quantization
from cabochon_convert.quantize import dequantize_matrix, quantize_matrix
from cabochon_convert.recipes import EMBEDDING, PER_LAYER_EMBEDDING
from cabochon_convert.trained_integers import IntegerRows, hold_the_same, to_blocks, trained_precision

BITS = st.sampled_from([2, 4, 8])
LINEAR = "model.language_model.layers.0.per_layer_projection.weight"
TENSORS = {2: "lm_head.weight", 4: "model.language_model.layers.1.self_attn.q_proj.weight", 8: LINEAR}
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["(", "a|b", "*"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


def mobile_quantization(**changes: Any) -> GemmaQuantization:
    quantization = read_quantization(copy.deepcopy(MOBILE) | changes)
    assert quantization is not None
    return quantization


def write_tensors(folder: Path, tensors: dict[str, np.ndarray]) -> GemmaIntegers:
    (folder / "config.json").write_text("{}")
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return GemmaIntegers(open_checkpoint(folder), mobile_quantization())


def dequantized(integers: GemmaIntegers, tensor: str, shape: tuple[int, int]) -> np.ndarray:
    precision = integers.precision(tensor, shape)
    assert precision is not None
    parts = [to_blocks(part, precision) for part in integers.rows(tensor, shape, range(shape[0]))]
    return np.concatenate([dequantize_matrix(part, shape[1], precision) for part in parts])


@st.composite
def signed_matrices(draw: st.DrawFn, bits: int) -> np.ndarray:
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 300)))
    half = 1 << (bits - 1)
    return draw(arrays(np.int8, shape, elements=st.integers(-half, half - 1)))


@given(st.data(), BITS)
def test_a_linear_layer_keeps_its_integers_and_scales_at_any_width(
    tmp_path: Path, data: st.DataObject, bits: int
) -> None:
    values = data.draw(signed_matrices(bits))
    scales = data.draw(arrays(np.float32, (len(values), 1), elements=st.floats(-10, 10, width=32)))
    tensor = TENSORS[bits]
    stored = {tensor: pack_mobile(values, bits), f"{tensor}_scale": scales}
    integers = write_tensors(tmp_path, stored)
    found = dequantized(integers, tensor, (values.shape[0], values.shape[1]))
    np.testing.assert_array_equal(found, values.astype(np.float32) * scales)


@given(st.data(), st.integers(1, 4), st.sampled_from([16, 32, 48, 256, 320]))
def test_a_table_keeps_the_scale_of_each_group(tmp_path: Path, data: st.DataObject, groups: int, size: int) -> None:
    values = data.draw(arrays(np.int8, (3, groups * size), elements=st.integers(-8, 7), fill=st.just(np.int8(3))))
    scales = data.draw(arrays(np.float32, (3, groups), elements=st.floats(-10, 10, width=32)))
    module = PER_LAYER_EMBEDDING.removesuffix(".weight")
    stored = {f"{module}.embedding_quantized": pack_mobile(values, 4), f"{module}.embedding_scale": scales}
    found = dequantized(write_tensors(tmp_path, stored), PER_LAYER_EMBEDDING, (3, groups * size))
    np.testing.assert_array_equal(found, values.astype(np.float32) * np.repeat(scales, size, axis=1))


@given(st.integers(0, 60), st.integers(0, 60))
def test_some_rows_are_those_of_the_whole(tmp_path: Path, first: int, count: int) -> None:
    generator = np.random.default_rng(3)
    values = generator.integers(-2, 2, (120, 64)).astype(np.int8)
    scales = generator.standard_normal((120, 1)).astype(np.float32)
    integers = write_tensors(tmp_path, {"lm_head.weight": pack_mobile(values, 2), "lm_head.weight_scale": scales})
    rows = range(first, first + count)
    parts = list(integers.rows("lm_head.weight", (120, 64), rows))
    found = np.concatenate([part.values for part in parts]) if parts else np.zeros((0, 64))
    np.testing.assert_array_equal(found, values[first : first + count] + 2)
    assert sum(len(part.scales) for part in parts) == count


@pytest.mark.parametrize(
    ("bits", "columns", "groups", "block"),
    [(4, 1536, 1, 256), (2, 1536, 1, 128), (8, 256, 1, 256), (4, 8960, 35, 256), (4, 96, 1, 32), (4, 17, 1, 16)],
)
def test_blocks_are_as_large_as_the_engine_is_fast_with(bits: int, columns: int, groups: int, block: int) -> None:
    precision = trained_precision("w", bits, columns, groups)
    assert (precision.block_size, precision.algorithm) == (block, "as-trained")


@pytest.mark.parametrize(("columns", "groups"), [(64, 3), (48, 6), (64, 64)])
def test_groups_that_no_block_fits_are_refused(columns: int, groups: int) -> None:
    with refused(CheckpointError, "w", str(groups)):
        trained_precision("w", 4, columns, groups)


def test_a_block_that_is_filled_up_is_filled_with_zeros() -> None:
    precision = trained_precision("w", 4, 17, 1)
    part = IntegerRows(np.full((1, 17), 15, np.uint8), np.ones((1, 1), np.float32))
    whole = dequantize_matrix(to_blocks(part, precision), 32, precision)
    assert whole.tolist() == [[7.0] * 17 + [0.0] * 15]


def test_integers_as_trained_are_never_the_result_of_rounding() -> None:
    with pytest.raises(ValueError, match="carried over"):
        quantize_matrix(np.ones((1, 16), np.float32), trained_precision("w", 4, 16, 1))


@pytest.mark.parametrize("changed", ["nothing", "value", "scale", "bits"])
def test_two_matrices_are_one_only_if_every_integer_and_scale_agrees(tmp_path: Path, changed: str) -> None:
    values, scales = round_per_group(np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32), 2, 1)
    module = EMBEDDING.removesuffix(".weight")
    other, other_scales = values.copy(), scales.copy()
    if changed == "value":
        other[4, 63] = -2 if other[4, 63] != -2 else 1
    if changed == "scale":
        other_scales[4] *= 1.0001
    head = LINEAR if changed == "bits" else "lm_head.weight"
    integers = write_tensors(
        tmp_path,
        {
            f"{module}.embedding_quantized": pack_mobile(values, 2),
            f"{module}.embedding_scale": scales,
            head: pack_mobile(other, 8 if changed == "bits" else 2),
            f"{head}_scale": other_scales,
        },
    )
    assert hold_the_same(integers, head, EMBEDDING, (5, 64)) == (changed == "nothing")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("weight", None, ["no tensor"]),
        ("weight", np.zeros((4, 16), np.uint8), ["shape [4, 16]", "[4, 32]"]),
        ("weight", np.zeros((4, 32), np.int8), ["I8", "U8"]),
        ("weight", np.zeros((4, 64), np.float32), ["shape"]),
        ("weight", np.zeros((4, 32), np.float32), ["F32", "U8"]),
        ("weight_scale", None, ["no tensor", "weight_scale"]),
        ("weight_scale", np.ones((4, 2), np.float32), ["[4, 2]"]),
        ("weight_scale", np.ones(4, np.float32), ["[4]"]),
        ("weight_scale", np.ones((4, 0), np.float32), ["[4, 0]"]),
        ("weight_scale", np.ones((4, 1), np.int8), ["I8"]),
        ("weight_scale", np.full((4, 1), np.nan, np.float32), ["not finite"]),
        ("input_activation_scale", np.ones(2, np.float32), ["[2]"]),
        ("output_activation_scale", np.array(-1, np.float32), ["-1.0"]),
        ("output_activation_scale", np.array(np.inf, np.float32), ["not finite"]),
    ],
    ids=str,
)
def test_hostile_tensors_are_refused_by_name(
    tmp_path: Path, name: str, value: np.ndarray | None, words: list[str]
) -> None:
    module = "model.language_model.layers.1.self_attn.q_proj"
    tensors = {
        "weight": np.zeros((4, 32), np.uint8),
        "weight_scale": np.ones((4, 1), np.float32),
        "input_activation_scale": np.array(0.1, np.float32),
        "output_activation_scale": np.array(0.1, np.float32),
    }
    tensors |= {} if value is None else {name: value}
    stored = {f"{module}.{key}": entry for key, entry in tensors.items() if key != name or value is not None}
    integers = write_tensors(tmp_path, stored)
    with refused(CheckpointError, module, *words):
        dequantized(integers, f"{module}.weight", (4, 64))
        integers.activation_scales(f"{module}.weight")


def test_activations_without_a_scale_are_not_rounded(tmp_path: Path) -> None:
    integers = write_tensors(tmp_path, {f"{LINEAR[:-7]}.input_activation_scale": np.array(0.5, np.float32)})
    assert (integers.activation_scales(LINEAR).input, integers.activation_scales(LINEAR).output) == (0.5, 0.0)
    for tensor in (EMBEDDING, "model.language_model.per_layer_model_projection.weight"):
        assert integers.activation_scales(tensor).input == 0.0


def test_every_matrix_has_the_bits_that_its_name_gets_from_the_published_config() -> None:
    quantization = mobile_quantization()
    found = {}
    for name, shape in tensor_shapes(untied_config(), with_vestigial=True).items():
        if name.endswith(".weight") and len(shape) == 2:
            module = name.removesuffix(".weight")
            is_embedding = name in (EMBEDDING, PER_LAYER_EMBEDDING)
            found[module] = quantization.bits_of(module, is_embedding=is_embedding)
            assert found[module] == mobile_bits(module)
    assert {2, 4, 8, None} == set(found.values())
    assert quantization.bits_of("lm_head", is_embedding=False) == 2
    assert quantization.bits_of("model.vision_tower.encoder.layers.0.mlp.up_proj.linear", is_embedding=False) == 8


def test_of_several_patterns_the_first_counts_and_a_module_is_kept_only_as_a_whole() -> None:
    overrides = {"mlp": {"num_bits": 2}, r"layers\.1\.mlp": {"num_bits": 8}, "gate$": {}}
    quantization = mobile_quantization(module_quant_configs=overrides, modules_to_not_convert=["layers.1", "fc"])
    bits = {
        module: quantization.bits_of(module, is_embedding=False)
        for module in ("a.mlp", "layers.1.x", "layers.11.x", "b.fc", "b.fc.c", "x.gate")
    }
    assert bits == {"a.mlp": 2, "layers.1.x": None, "layers.11.x": 4, "b.fc": None, "b.fc.c": 4, "x.gate": 4}


def test_embeddings_are_floating_point_unless_the_config_says_so() -> None:
    quantization = mobile_quantization(quantize_embeddings=False)
    assert quantization.bits_of(EMBEDDING.removesuffix(".weight"), is_embedding=True) is None


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"group_size": 32}, "group_size"),
        ({"quant_method": "gptq"}, "gptq"),
        ({"quant_method": None}, "None"),
        ({"num_bits": 3}, "3"),
        ({"num_bits": 4.0}, "4.0"),
        ({"num_bits": True}, "True"),
        ({"quantize_embeddings": 1}, "quantize_embeddings"),
        ({"modules_to_not_convert": None}, "modules_to_not_convert"),
        ({"modules_to_not_convert": [1]}, "modules_to_not_convert"),
        ({"modules_to_not_convert": ["("]}, "regular expression"),
        ({"module_quant_configs": ["mlp"]}, "module_quant_configs"),
        ({"module_quant_configs": {"mlp": 4}}, "module_quant_configs"),
        ({"module_quant_configs": {"mlp": {"num_bits": 16}}}, "16"),
        ({"module_quant_configs": {"mlp": {"num_bits": 4, "asymmetric": True}}}, "asymmetric"),
        ({"module_quant_configs": {"(": {"num_bits": 4}}}, "regular expression"),
        ({"module_quant_configs": {"(?P<g7>a)": {"num_bits": 4}}}, "named groups"),
    ],
    ids=str,
)
def test_a_quantization_that_is_not_known_is_refused(change: dict[str, Any], word: str) -> None:
    with refused(CheckpointError, word):
        read_quantization(copy.deepcopy(MOBILE) | change)


@given(st.sampled_from(sorted(MOBILE)), JSON_VALUES)
def test_any_quantization_config_is_read_or_refused(key: str, value: Any) -> None:
    try:
        quantization = read_quantization(copy.deepcopy(MOBILE) | {key: value})
    except CheckpointError:
        return
    assert quantization is not None
    assert quantization.bits_of("a.b", is_embedding=False) in (None, 2, 4, 8)


def test_an_output_matrix_tied_to_a_table_of_integers_is_refused() -> None:
    config = untied_config() | {"quantization_config": MOBILE}
    assert read_config(config).quantization == mobile_quantization()
    with refused(CheckpointError, "tie_word_embeddings"):
        read_config(json.loads(json.dumps(config)) | {"tie_word_embeddings": True})
