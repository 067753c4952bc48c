from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from cabochon_convert.checkpoint import CheckpointError, open_checkpoint
from cabochon_convert.embeddings import write_table
from cabochon_convert.packed_integers import PackedIntegers
from cabochon_convert.quantization_config import CompressedTensorsQuantization, read_quantization
from cabochon_convert.recipes import PER_LAYER_EMBEDDING

# As compressed-tensors 0.20 writes it for `-qat-w4a16-ct`, which lists modules where there are patterns here.
W4A16: dict[str, Any] = {
    "config_groups": {
        "group_0": {
            "format": "pack-quantized",
            "input_activations": None,
            "output_activations": None,
            "targets": ["Linear", "re:.*embed_tokens_per_layer$"],
            "weights": {
                "dynamic": False,
                "group_size": 32,
                "num_bits": 4,
                "strategy": "group",
                "symmetric": True,
                "type": "int",
            },
        }
    },
    "format": "pack-quantized",
    "global_compression_ratio": None,
    "ignore": ["lm_head", "re:.*vision_tower.*", "re:.*audio_tower.*"],
    "kv_cache_scheme": None,
    "moe_sparsity_config": None,
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
    "sparsity_config": {},
    "transform_config": {},
    "version": "0.20.0",
}
TENSOR = "model.language_model.layers.1.mlp.up_proj.weight"
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["re:(", "Linear", "group", "weights", "targets", "num_bits"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


def section(path: tuple[str, ...] = (), value: Any = None) -> dict[str, Any]:
    """The config with one value changed."""
    found = copy.deepcopy(W4A16)
    inner: Any = found
    for key in path[:-1]:
        inner = inner[key]
    if path:
        inner[path[-1]] = value
    return found


def quantization(path: tuple[str, ...] = (), value: Any = None) -> CompressedTensorsQuantization:
    found = read_quantization(section(path, value))
    assert isinstance(found, CompressedTensorsQuantization)
    return found


def pack_nibbles(values: np.ndarray) -> np.ndarray:
    """int4 [rows, columns] to int32 words, said independently of the code under test."""
    nibbles = (values.astype(np.int64) + 8).reshape(len(values), -1, 8)
    words = sum(nibbles[..., place] << (4 * place) for place in range(8))
    return np.asarray(words, np.uint32).view(np.int32)


def tensors(rows: int = 4, columns: int = 64, tensor: str = TENSOR) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        f"{tensor}_packed": pack_nibbles(generator.integers(-8, 8, (rows, columns))),
        f"{tensor}_scale": generator.uniform(0.01, 0.1, (rows, columns // 32)).astype(ml_dtypes.bfloat16),
        f"{tensor}_shape": np.array([rows, columns]),
    }


def write(folder: Path, stored: dict[str, np.ndarray], config: CompressedTensorsQuantization) -> PackedIntegers:
    (folder / "config.json").write_text("{}")
    safetensors.numpy.save_file(stored, folder / "model.safetensors")
    return PackedIntegers(open_checkpoint(folder), config)


def test_a_layer_that_is_not_packed_is_floating_point(tmp_path: Path) -> None:
    integers = write(tmp_path, {TENSOR: np.ones((4, 64), np.float32)}, quantization())
    assert integers.precision(TENSOR, (4, 64)) is None
    assert integers.precision("lm_head.weight", (4, 64)) is None
    assert integers.activation_scales(TENSOR).input == 0


@given(st.integers(0, 40), st.integers(0, 40))
def test_some_rows_are_those_of_the_whole_with_their_scales(tmp_path: Path, first: int, count: int) -> None:
    stored = tensors(rows=80)
    integers = write(tmp_path, stored, quantization())
    (whole,) = integers.rows(TENSOR, (80, 64), range(80))
    parts = list(integers.rows(TENSOR, (80, 64), range(first, first + count)))
    assert sum(len(part.values) for part in parts) == count
    for part in parts:
        np.testing.assert_array_equal(part.values, whole.values[first : first + count])
        np.testing.assert_array_equal(part.scales, stored[f"{TENSOR}_scale"][first : first + count])


def test_a_packed_table_is_written_with_its_integers_and_scales(tmp_path: Path) -> None:
    stored = tensors(columns=128, tensor=PER_LAYER_EMBEDDING)
    integers = write(tmp_path, stored, quantization())
    precision = integers.precision(PER_LAYER_EMBEDDING, (4, 128))
    assert precision is not None
    path = tmp_path / "table.bin"
    checkpoint = open_checkpoint(tmp_path)
    table = write_table(checkpoint, PER_LAYER_EMBEDDING, (4, 128), precision, 1.0, path, integers)
    assert (table.storage, table.block_size, table.scale_storage) == ("int4", 32, "float32")
    rows = np.frombuffer(path.read_bytes(), np.uint8).reshape(4, -1)
    np.testing.assert_array_equal(rows[:, :64].copy().view("<i4"), stored[f"{PER_LAYER_EMBEDDING}_packed"])
    np.testing.assert_array_equal(rows[:, 64:].copy().view("<f4"), stored[f"{PER_LAYER_EMBEDDING}_scale"])


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("packed", np.zeros((4, 9), np.int32), ["shape [4, 9]", "[4, 8]"]),
        ("packed", np.zeros((4, 8), np.int64), ["I64", "I32"]),
        ("scale", None, ["no tensor", "weight_scale"]),
        ("scale", np.ones((4, 1), np.float32), ["[4, 1]", "[4, 2]"]),
        ("scale", np.ones((4, 2), np.uint8), ["U8"]),
        ("scale", np.full((4, 2), np.inf, np.float32), ["not finite"]),
        ("shape", None, ["no tensor", "weight_shape"]),
        ("shape", np.array([4, 63]), ["[4, 63]", "[4, 64]"]),
        ("shape", np.array([4, 64, 1]), ["[3]"]),
        ("shape", np.array([4.0, 64.0]), ["F64"]),
        ("zero_point", np.zeros((1, 2), np.int32), ["weight_zero_point", "exactly"]),
        ("g_idx", np.arange(64, dtype=np.int32), ["weight_g_idx", "exactly"]),
        ("global_scale", np.ones(1, np.float32), ["weight_global_scale", "exactly"]),
    ],
    ids=str,
)
def test_hostile_tensors_are_refused_by_name(
    tmp_path: Path, part: str, value: np.ndarray | None, words: list[str]
) -> None:
    stored = tensors() | {f"{TENSOR}_{part}": value}
    present = {name: array for name, array in stored.items() if array is not None}
    with refused(CheckpointError, TENSOR, *words):
        integers = write(tmp_path, present, quantization())
        list(integers.rows(TENSOR, (4, 64), range(4)))


def test_a_layer_both_packed_and_floating_point_is_refused(tmp_path: Path) -> None:
    with refused(CheckpointError, TENSOR, "exactly"):
        write(tmp_path, tensors() | {TENSOR: np.ones((4, 64), np.float32)}, quantization())


def test_a_packed_layer_that_the_config_ignores_is_refused(tmp_path: Path) -> None:
    integers = write(tmp_path, tensors(), quantization(("ignore",), ["re:.*mlp.*"]))
    with refused(CheckpointError, f"{TENSOR}_packed", "leaves out"):
        integers.precision(TENSOR, (4, 64))


@pytest.mark.parametrize(("size", "word"), [(48, "48"), (8, "8 scales")])
def test_groups_that_do_not_fit_are_refused(tmp_path: Path, size: int, word: str) -> None:
    config = quantization(("config_groups", "group_0", "weights", "group_size"), size)
    with refused(CheckpointError, TENSOR, word):
        write(tmp_path, tensors(), config).precision(TENSOR, (4, 64))


WEIGHTS = ("config_groups", "group_0", "weights")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("format",), "float-quantized", ["format", "float-quantized"]),
        (("format",), "marlin-24", ["marlin-24"]),
        (("format",), None, ["format", "None"]),
        (("quantization_status",), "frozen", ["frozen"]),
        (("kv_cache_scheme",), {"num_bits": 8, "type": "float"}, ["kv_cache_scheme", "float"]),
        (("sparsity_config",), {"format": "sparse-24-bitmask"}, ["sparse-24-bitmask"]),
        (("transform_config",), {"config_groups": {}}, ["transform_config"]),
        (("config_groups",), None, ["config_groups"]),
        (("config_groups",), {}, ["config_groups"]),
        (("config_groups", "W4A16"), ["Linear"], ["W4A16"]),
        (("config_groups", "group_0", "targets"), None, ["targets"]),
        (("config_groups", "group_0", "targets"), [1], ["targets"]),
        (("config_groups", "group_0", "targets"), ["re:("], ["re:("]),
        (("config_groups", "group_0", "input_activations"), {"num_bits": 8}, ["input_activations"]),
        (("config_groups", "group_0", "output_activations"), {"num_bits": 8}, ["output_activations"]),
        (("config_groups", "group_0", "format"), "int-quantized", ["int-quantized"]),
        (("config_groups", "group_0", "rotation"), 1, ["rotation"]),
        (("config_groups", "group_0", "weights"), None, ["weights"]),
        ((*WEIGHTS, "num_bits"), 3, ["3"]),
        ((*WEIGHTS, "num_bits"), 4.0, ["4.0"]),
        ((*WEIGHTS, "type"), "float", ["type", "float"]),
        ((*WEIGHTS, "symmetric"), False, ["symmetric", "False"]),
        ((*WEIGHTS, "dynamic"), True, ["dynamic"]),
        ((*WEIGHTS, "actorder"), "group", ["actorder", "group"]),
        ((*WEIGHTS, "actorder"), True, ["actorder", "True"]),
        ((*WEIGHTS, "scale_dtype"), "torch.float8_e4m3fn", ["scale_dtype", "float8"]),
        ((*WEIGHTS, "strategy"), "block", ["block"]),
        ((*WEIGHTS, "strategy"), "tensor_group", ["tensor_group"]),
        ((*WEIGHTS, "strategy"), "channel", ["channel", "32"]),
        ((*WEIGHTS, "group_size"), None, ["group", "None"]),
        ((*WEIGHTS, "group_size"), 0, ["0"]),
        ((*WEIGHTS, "group_size"), 32.0, ["32.0"]),
        ((*WEIGHTS, "zero_point_shift"), 1, ["zero_point_shift"]),
        (("ignore",), "lm_head", ["ignore"]),
        (("ignore",), ["re:*"], ["re:*"]),
        (("rotation_config",), {}, ["rotation_config"]),
    ],
    ids=str,
)
def test_a_format_that_is_not_known_is_refused_by_what_was_found(
    path: tuple[str, ...], value: Any, words: list[str]
) -> None:
    with refused(CheckpointError, "quantization_config", *words):
        read_quantization(section(path, value))


@pytest.mark.parametrize("order", [None, False, "weight", "static"])
def test_the_order_in_which_rounding_went_on_changes_nothing(order: Any) -> None:
    assert quantization((*WEIGHTS, "actorder"), order) == quantization()


@given(st.sampled_from(sorted(W4A16)), JSON_VALUES)
def test_any_quantization_config_is_read_or_refused(key: str, value: Any) -> None:
    _read_or_refuse(section((key,), value))


@given(st.sampled_from(sorted(W4A16["config_groups"]["group_0"])), JSON_VALUES)
def test_any_group_is_read_or_refused(key: str, value: Any) -> None:
    _read_or_refuse(section(("config_groups", "group_0", key), value))


@given(st.sampled_from([*W4A16["config_groups"]["group_0"]["weights"], "actorder", "scale_dtype"]), JSON_VALUES)
def test_any_scheme_is_read_or_refused(key: str, value: Any) -> None:
    _read_or_refuse(section((*WEIGHTS, key), value))


def _read_or_refuse(changed: dict[str, Any]) -> None:
    try:
        found = read_quantization(changed)
    except CheckpointError:
        return
    assert isinstance(found, CompressedTensorsQuantization | None) or changed["quant_method"] == "gemma"
