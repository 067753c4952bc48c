"""Embedding tables as graphs, and as rows that the runtime reads from the same file."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from litert_graphs import RUNNERS, GivenMatrix, interpret, random_matrix

from cabochon.embedding_table import EmbeddingRows
from cabochon_convert.bundle_litertlm import _PackagedTable
from cabochon_convert.embedder_litert import SIGNATURE, build_embedder
from cabochon_convert.flatbuffer_litert import describe_graph

STORAGES = ((8, 0), (4, 32), (4, 64), (4, 128), (4, 0), (32, 0))
"""Bits and block size."""
SCALE = 39.25


@st.composite
def tables(draw: st.DrawFn) -> GivenMatrix:
    bits, block = draw(st.sampled_from(STORAGES))
    columns = draw(st.integers(2, 4)) * block if block else draw(st.integers(1, 60)) * 2
    return random_matrix(draw(st.integers(2, 40)), columns, bits, block, draw(st.integers(0, 99)))


def looked_up(path: Path, token: int, run: Callable[..., dict[str, np.ndarray]] = interpret) -> np.ndarray:
    return run(path, SIGNATURE, token_ids=np.array([[token]], np.int32))["embeddings"]


@given(table=tables(), draw=st.data())
def test_the_graph_and_the_runtime_read_the_same_rows_from_one_file(
    tmp_path: Path, table: GivenMatrix, draw: st.DataObject
) -> None:
    described = build_embedder(table, SCALE, (table.columns,), tmp_path / "table.tflite")
    assert described.signed == (table.bits < 32)
    rows = EmbeddingRows(tmp_path.joinpath, described)
    for token in {0, table.rows - 1, draw.draw(st.integers(0, table.rows - 1))}:
        (row,) = rows.look_up([token])
        np.testing.assert_allclose(row, table.weights[token] * SCALE, rtol=1e-6)
        found = looked_up(tmp_path / "table.tflite", token)
        assert found.shape == (1, 1, table.columns)
        np.testing.assert_allclose(found[0, 0], row, rtol=1e-6)


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.parametrize(("bits", "block_size"), STORAGES)
def test_placeholders_of_media_are_looked_up_like_the_first_token(
    tmp_path: Path, run: Callable[..., dict[str, np.ndarray]], bits: int, block_size: int
) -> None:
    table = random_matrix(9, 256, bits, block_size, 0)
    build_embedder(table, SCALE, (256,), tmp_path / "table.tflite")
    first = looked_up(tmp_path / "table.tflite", 0, run)
    np.testing.assert_allclose(first[0, 0], table.weights[0] * SCALE, rtol=1e-6)
    for token in (-1, -2, -(1 << 31)):
        assert np.array_equal(looked_up(tmp_path / "table.tflite", token, run), first)


@pytest.mark.parametrize(("bits", "block_size"), STORAGES)
def test_per_layer_embeddings_come_layer_by_layer(tmp_path: Path, bits: int, block_size: int) -> None:
    layers, width = 8, 64
    table = random_matrix(5, layers * width, bits, block_size, 1)
    path = tmp_path / "per_layer.tflite"
    rows = EmbeddingRows(tmp_path.joinpath, build_embedder(table, SCALE, (layers, width), path))
    found = looked_up(path, 3)
    assert found.shape == (1, 1, layers, width)
    np.testing.assert_allclose(found[0, 0], rows.look_up([3])[0].reshape(layers, width), rtol=1e-6)
    graph = describe_graph(path, SIGNATURE)
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in graph.inputs] == [("token_ids", "int32", (1, 1))]
    assert [tensor.shape for tensor in graph.outputs] == [(1, 1, layers, width)]


@given(table=tables(), rows_at_once=st.integers(1, 50))
def test_a_table_of_a_package_makes_the_very_same_graph_again(
    tmp_path: Path, table: GivenMatrix, rows_at_once: int
) -> None:
    first, again = tmp_path / "first.tflite", tmp_path / "again.tflite"
    described = build_embedder(table, SCALE, (table.columns,), first)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cabochon_convert.bundle_litertlm._ROWS_AT_ONCE", rows_at_once)
        copied = build_embedder(_PackagedTable(tmp_path, described), SCALE, (table.columns,), again)
    assert again.read_bytes() == first.read_bytes()
    assert copied.block_size == described.block_size


def test_a_table_of_more_rows_than_are_read_at_once_is_copied_whole(tmp_path: Path) -> None:
    table = GivenMatrix(np.arange(5000 * 8).reshape(5000, 8) % 16 - 8, np.ones((5000, 1), np.float32), 4, 999)
    described = build_embedder(table, 1.0, (8,), tmp_path / "first.tflite")
    parts = list(_PackagedTable(tmp_path, described).parts())
    assert len(parts) == math.ceil(5000 / 4096)
    assert sum(len(part.values) for part in parts) == 5000
    again = SimpleNamespace(rows=5000, columns=8, bits=4, block_size=0, parts=lambda: iter(parts))
    build_embedder(again, 1.0, (8,), tmp_path / "again.tflite")
    assert (tmp_path / "again.tflite").read_bytes() == (tmp_path / "first.tflite").read_bytes()
