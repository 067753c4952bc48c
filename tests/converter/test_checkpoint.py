from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from cabochon_convert.checkpoint import (
    CheckpointError,
    checkpoint_name,
    hash_checkpoint,
    open_checkpoint,
    read_json,
)

MATRIX = np.arange(24, dtype=np.float32).reshape(4, 6)
VECTOR = np.array([0.5, -2.0, 3.0], np.float32)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of one file."""
    (tmp_path / "config.json").write_text("{}")
    safetensors.numpy.save_file({"matrix": MATRIX, "vector": VECTOR}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A checkpoint of two files."""
    (tmp_path / "config.json").write_text("{}")
    safetensors.numpy.save_file({"matrix": MATRIX}, tmp_path / "model-1.safetensors")
    safetensors.numpy.save_file({"vector": VECTOR}, tmp_path / "model-2.safetensors")
    write_index(tmp_path, {"matrix": "model-1.safetensors", "vector": "model-2.safetensors"})
    return tmp_path


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def write_header(folder: Path, header: Any, values: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + values)


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} | changes


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_storage_type_is_read_as_float32(folder: Path, dtype: Any) -> None:
    stored = (MATRIX / 7).astype(dtype)
    safetensors.numpy.save_file({"matrix": stored}, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    found = checkpoint.read("matrix", (4, 6))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, stored.astype(np.float32))
    np.testing.assert_array_equal(np.concatenate([*checkpoint.read_rows("matrix", (4, 6), range(1, 3))]), found[1:3])
    raw = np.concatenate([*checkpoint.read_stored_rows("matrix", (4, 6))])
    assert raw.tobytes() == stored.tobytes()


def test_shards_are_one_checkpoint(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded)
    np.testing.assert_array_equal(checkpoint.read("matrix", (4, 6)), MATRIX)
    assert "vector" in checkpoint
    assert checkpoint.unread_names == ("vector",)
    assert [file.name for file in checkpoint.files] == ["model-1.safetensors", "model-2.safetensors"]
    assert checkpoint.size == sum(file.stat().st_size for file in checkpoint.files)
    assert checkpoint.size_of("mat") == MATRIX.nbytes


def test_whoever_listens_hears_of_every_byte_that_was_read(folder: Path) -> None:
    counted: list[int] = []
    checkpoint = open_checkpoint(folder, counted.append)
    checkpoint.read("vector", (3,))
    assert sum(counted) == VECTOR.nbytes
    list(checkpoint.read_rows("matrix", (4, 6)))
    assert sum(counted) == VECTOR.nbytes + MATRIX.nbytes


def test_the_hash_changes_with_the_config_and_with_every_weight(sharded: Path) -> None:
    def digest() -> str:
        return hash_checkpoint(open_checkpoint(sharded), lambda _: None)

    hashes = [digest()]
    (sharded / "config.json").write_text("{ }")
    hashes.append(digest())
    safetensors.numpy.save_file({"vector": VECTOR + 1}, sharded / "model-2.safetensors")
    hashes.append(digest())
    assert len(set(hashes)) == 3
    assert hashes[-1] == digest()


def test_a_package_names_its_source_without_the_path_of_this_machine(folder: Path) -> None:
    assert checkpoint_name(folder) == folder.name
    assert checkpoint_name(folder / "..") == folder.parent.name


def test_no_folder_an_empty_one_and_an_absurd_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file", tmp_path / "nothing", tmp_path / ("x" * 5000)):
        with refused(CheckpointError, str(path)):
            open_checkpoint(path)


def test_a_lora_adapter_is_called_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with refused(CheckpointError, "LoRA", "--lora"):
        open_checkpoint(tmp_path)


def test_a_checkpoint_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with refused(CheckpointError, "safetensors"):
        open_checkpoint(tmp_path)


def test_a_missing_shard_is_refused_and_named(sharded: Path) -> None:
    (sharded / "model-2.safetensors").unlink()
    with refused(CheckpointError, "model-2.safetensors", "missing"):
        open_checkpoint(sharded)


def test_a_shard_that_lacks_its_tensor_is_refused(sharded: Path) -> None:
    safetensors.numpy.save_file({"other": VECTOR}, sharded / "model-2.safetensors")
    with refused(CheckpointError, "model-2.safetensors", "vector"):
        open_checkpoint(sharded)
    write_index(sharded, {"matrix": "model-2.safetensors", "other": "model-2.safetensors"})
    with refused(CheckpointError, "matrix"):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    "weight_map",
    [
        None,
        [],
        {},
        {"a": 1},
        {"a": "../model.safetensors"},
        {"a": "/etc/passwd"},
        {"a": ""},
        {"a": ".."},
        {"a": "x" * 5000},
        {"a": "nul\x00"},
        {"a": {"b": "c"}},
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_hostile_index_is_refused(sharded: Path, weight_map: Any) -> None:
    write_index(sharded, weight_map)
    with refused(CheckpointError):
        open_checkpoint(sharded)


def test_a_tensor_that_is_not_there_is_refused(folder: Path) -> None:
    with refused(CheckpointError, "no tensor", "absent"):
        open_checkpoint(folder).read("absent", (1,))


@pytest.mark.parametrize("shape", [(6, 4), (24,), (4, 6, 1), (4, 5), ()])
def test_a_shape_that_the_config_does_not_lead_to_is_refused(folder: Path, shape: tuple[int, ...]) -> None:
    with refused(CheckpointError, "[4, 6]", str(list(shape))):
        open_checkpoint(folder).read("matrix", shape)


@pytest.mark.parametrize("dtype", ["U8", "I8", "F8_E4M3", "I32", "F64", "F4"])
def test_quantized_weights_are_refused_when_they_are_read(folder: Path, dtype: str) -> None:
    size = 6 if dtype in ("U8", "I8") else 24
    write_header(folder, {"matrix": entry(dtype=dtype, data_offsets=[0, size])}, bytes(size))
    checkpoint = open_checkpoint(folder)
    with refused(CheckpointError, dtype, "unquantized"):
        checkpoint.read("matrix", (2, 3))


def test_a_file_truncated_anywhere_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    for length in (0, 1, 7, 8, 9, header_end - 1, header_end, header_end + 1, len(whole) - 1):
        path.write_bytes(whole[:length])
        with refused(CheckpointError, "model.safetensors", "download it again"):
            open_checkpoint(folder)
    path.write_bytes(whole)
    open_checkpoint(folder)


@pytest.mark.parametrize("length", [0, 1, 1 << 40, (1 << 64) - 1])
def test_an_impossible_header_length_is_refused(folder: Path, length: int) -> None:
    (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(100))
    with refused(CheckpointError, "model.safetensors"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "header",
    [
        b"{]",
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        [],
        1,
        None,
        {"m": None},
        {"m": 1},
        {"m": []},
        {"m": {}},
        {"m": entry(shape=None)},
        {"m": entry(shape="23")},
        {"m": entry(shape=[2, -3])},
        {"m": entry(shape=[2, 3.0])},
        {"m": entry(shape=[True, 6])},
        {"m": entry(shape=[2, 4])},
        {"m": entry(shape=[1 << 70, 1 << 70])},
        {"m": entry(shape=[[2], 3])},
        {"m": entry(data_offsets=[0])},
        {"m": entry(data_offsets=[0, 24, 48])},
        {"m": entry(data_offsets=[24, 0])},
        {"m": entry(data_offsets=[-24, 0])},
        {"m": entry(data_offsets=[8, 32])},
        {"m": entry(data_offsets=["0", "24"])},
        {"m": entry(data_offsets=[1 << 80, (1 << 80) + 24])},
        {"m": entry(dtype=None)},
        {"m": entry(dtype=["F32"])},
        {"m": entry(dtype="F16")},
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_hostile_header_is_refused(folder: Path, header: Any) -> None:
    write_header(folder, header, bytes(24))
    with refused(CheckpointError, "model.safetensors", "download it again"):
        open_checkpoint(folder)


def _open_or_refuse(folder: Path) -> None:
    """Whatever opens must be readable to its last byte."""
    try:
        checkpoint = open_checkpoint(folder)
        for name in checkpoint.unread_names:
            shape = checkpoint.record(name).shape
            if 0 not in shape:
                checkpoint.read(name, shape)
    except CheckpointError:
        return


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_but_nothing_else(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    _open_or_refuse(folder)
    write_header(folder, content)
    _open_or_refuse(folder)


@given(JSON_VALUES, st.sampled_from([None, "dtype", "shape", "data_offsets"]))
def test_a_random_header_is_opened_or_refused_but_nothing_else(folder: Path, value: Any, key: str | None) -> None:
    write_header(folder, {"m": entry(**{key: value}) if key else value}, bytes(64))
    _open_or_refuse(folder)


@given(st.data())
def test_a_header_with_changed_bytes_is_opened_or_refused_but_nothing_else(folder: Path, data: st.DataObject) -> None:
    text = bytearray(json.dumps({"m": entry(), "n": entry(data_offsets=[24, 48])}).encode())
    for position in data.draw(st.lists(st.integers(0, len(text) - 1), min_size=1, max_size=3)):
        text[position] = data.draw(st.integers(0, 255))
    write_header(folder, bytes(text), bytes(64))
    _open_or_refuse(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"1", b"{", b"\xff", b"[" * 100_000])
def test_a_json_file_that_holds_no_object_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with refused(CheckpointError, "config.json"):
        read_json(path)
    with refused(CheckpointError, "missing.json", "missing"):
        read_json(tmp_path / "missing.json")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float) -> None:
    weights = np.ones((4, 8), np.float32)
    weights[2, 3] = value
    header = json.dumps({"w": {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, weights.nbytes]}}).encode()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + weights.tobytes())
    checkpoint = open_checkpoint(tmp_path)
    with refused(CheckpointError, "w", "not finite"):
        list(checkpoint.read_rows("w", (4, 8)))
    with refused(CheckpointError, "w", "not finite"):
        checkpoint.read("w", (4, 8))
    assert not np.isfinite(checkpoint.read("w", (4, 8), may_be_infinite=True)).all()


def test_tensors_in_the_same_place_are_refused(folder: Path) -> None:
    write_header(folder, {"a": entry(), "b": entry(data_offsets=[8, 32])}, bytes(32))
    with refused(CheckpointError, "'a'", "'b'", "same place"):
        open_checkpoint(folder)


def test_a_tensor_of_more_dimensions_than_any_has_is_refused(folder: Path) -> None:
    write_header(folder, {"a": entry(shape=[1] * 33 + [6])}, bytes(24))
    with refused(CheckpointError, "wrongly"):
        open_checkpoint(folder)


def test_the_name_of_a_tensor_does_not_reach_a_terminal_as_a_command(folder: Path) -> None:
    write_header(folder, {"a\n\x1b[2J": entry(shape=[7])}, bytes(24))
    with refused(CheckpointError, r"a\n\x1b[2J"):
        open_checkpoint(folder)
