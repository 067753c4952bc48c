"""Caches whose length is chosen after a graph is made, and again when its signatures run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.compiled_model import CompiledModel
from litert_graphs import FLOAT, OPERATORS, OPTIONS

from cabochon_convert.cache_axes_litert import STAND_IN, change_cache_length, set_cache_length
from cabochon_convert.flatbuffer_litert import pack_model
from cabochon_convert.graph_writer_litert import GraphWriter

WIDTH = 3


def sum_of(other: str) -> bytes:
    """A graph that adds something to rows as many as `STAND_IN`: one row, as many, or a constant."""
    graph = GraphWriter()
    rows = graph.tensor("rows", [1, STAND_IN, WIDTH], FLOAT)
    inputs = {"rows": rows}
    if other == "constant":
        added = graph.constant("added", np.zeros((1, STAND_IN, WIDTH), np.float32))
    else:
        inputs["added"] = added = graph.tensor("added", [1, 1 if other == "row" else STAND_IN, WIDTH], FLOAT)
    total = graph.tensor("total", [1, STAND_IN, WIDTH], FLOAT)
    graph.operator(OPERATORS.ADD, [rows, added], total, (OPTIONS.AddOptions, schema.AddOptionsT()))
    return graph.finish("sum", inputs, {"total": total})


def shapes(graph: bytes) -> dict[str, list[int]]:
    model = schema.ModelT.InitFromPackedBuf(bytearray(graph), 0)
    return {tensor.name.decode(): tensor.shape.tolist() for tensor in model.subgraphs[0].tensors}


@pytest.mark.parametrize("other", ["row", "rows"])
def test_caches_have_the_length_that_is_asked_for_and_nothing_else_changes(other: str) -> None:
    found = shapes(set_cache_length(sum_of(other), 40))
    assert found == {"rows": [1, 40, 3], "added": [1, 1 if other == "row" else 40, 3], "total": [1, 40, 3]}


def test_the_length_may_be_changed_again_in_the_file() -> None:
    model = schema.ModelT.InitFromPackedBuf(bytearray(set_cache_length(sum_of("rows"), WIDTH)), 0)
    change_cache_length(model, 7)
    # Three columns are no cache of three positions.
    assert set(map(tuple, shapes(pack_model(model)).values())) == {(1, 7, WIDTH)}


def test_a_graph_without_a_note_stays_as_it_is() -> None:
    model = schema.ModelT.InitFromPackedBuf(bytearray(sum_of("row")), 0)
    change_cache_length(model, 7)
    assert shapes(pack_model(model))["rows"] == [1, STAND_IN, WIDTH]


def test_a_graph_that_holds_a_constant_of_the_length_is_refused() -> None:
    with pytest.raises(ValueError, match="added"):
        set_cache_length(sum_of("constant"), 40)


def test_a_graph_that_holds_the_length_in_a_shape_is_refused() -> None:
    graph = GraphWriter()
    rows = graph.tensor("rows", [1, STAND_IN, WIDTH], FLOAT)
    turned = graph.tensor("turned", [STAND_IN, 1, WIDTH], FLOAT)
    shape = graph.constant("new shape", np.array([STAND_IN, 1, WIDTH], np.int32))
    graph.operator(OPERATORS.RESHAPE, [rows, shape], turned)
    with pytest.raises(ValueError, match="new shape"):
        set_cache_length(graph.finish("turn", {"rows": rows}, {"turned": turned}), 40)


def test_signatures_run_at_any_length(tmp_path: Path) -> None:
    path = tmp_path / "sum.tflite"
    path.write_bytes(set_cache_length(sum_of("row"), 40))
    model = CompiledModel.from_file(str(path))
    for length in (40, 5, 60):
        model.resize_input_tensor_by_name("sum", "rows", [1, length, WIDTH], strict=False)
        inputs = {name: model.create_input_buffer_by_name("sum", name) for name in ("rows", "added")}
        outputs = {"total": model.create_output_buffer_by_name("sum", "total")}
        inputs["rows"].write(np.arange(length * WIDTH, dtype=np.float32).reshape(1, length, WIDTH))
        inputs["added"].write(np.ones((1, 1, WIDTH), np.float32))
        model.run_by_name("sum", inputs, outputs)
        assert outputs["total"].read(length * WIDTH, np.float32).tolist() == list(range(1, length * WIDTH + 1))
