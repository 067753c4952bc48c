"""Matrices in the places of a graph, as LiteRT multiplies with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import quantizer, recipe
from hypothesis import given
from hypothesis import strategies as st
from litert_graphs import (
    FLOAT,
    OPERATORS,
    OPTIONS,
    RUNNERS,
    GivenMatrix,
    add_layer,
    add_place,
    interpret,
    one_layer,
    random_matrix,
)

from cabochon.manifest import Graph, RowRegion, Tensor
from cabochon_convert.flatbuffer_litert import (
    FilledMatrix,
    MatrixPart,
    describe_graph,
    fill_places,
    keep_signatures,
)
from cabochon_convert.graph_writer_litert import GraphWriter
from cabochon_convert.quantize import Precision, quantize_matrix, unpack

POSITIONS = 3
STORAGES = ((8, 0), (4, 32), (4, 64), (4, 128), (4, 256), (4, 0), (2, 0), (32, 0))
"""Bits and block size."""
Runner = Callable[..., dict[str, np.ndarray]]


@st.composite
def matrices(draw: st.DrawFn) -> GivenMatrix:
    """Of every kind that XNNPACK multiplies with."""
    bits, block = draw(st.sampled_from(STORAGES))
    per_byte = max(1, 8 // bits)
    columns = draw(st.integers(1, 3)) * block if block else draw(st.integers(1, 40)) * per_byte
    if block and columns == block:
        columns *= 2
    # One byte is too little for a matrix of a file: sizes of 0 and 1 mean something else in LiteRT's format.
    return random_matrix(draw(st.integers(2, 40)), columns, bits, block, draw(st.integers(0, 99)))


def exact_inputs(columns: int, seed: int) -> np.ndarray:
    """[1, positions, columns] of integers that reach from -128 to 127, so that rounding to 8 bits changes nothing."""
    x = np.random.default_rng(seed).integers(-128, 128, (1, POSITIONS, columns)).astype(np.float32)
    x[..., 0], x[..., -1] = -128, 127
    return x


def product(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ weights.T


def summation_error(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Of float32: a few units in the last place of the largest partial sums."""
    return 1e-6 * product(np.abs(x), np.abs(weights)) + 1e-30


@pytest.mark.parametrize("run", RUNNERS)
@given(matrix=matrices(), seed=st.integers(0, 99))
def test_a_layer_multiplies_with_what_the_integers_and_scales_stand_for(
    tmp_path: Path, run: Runner, matrix: GivenMatrix, seed: int
) -> None:
    path = tmp_path / "layer.tflite"
    fill_places(one_layer((matrix.rows, matrix.columns), POSITIONS), [matrix], path)
    x = exact_inputs(matrix.columns, seed)
    if matrix.columns == 1:
        x[:] = 127
    found = run(path, "layer", x=x)["y"]
    assert (np.abs(found - product(x, matrix.weights)) <= summation_error(x, matrix.weights)).all()


@given(matrix=matrices(), seed=st.integers(0, 99), offset=st.floats(-3, 3))
def test_all_that_a_layer_rounds_beside_its_matrix_are_inputs_to_8_bits_a_position(
    tmp_path: Path, matrix: GivenMatrix, seed: int, offset: float
) -> None:
    path = tmp_path / "layer.tflite"
    fill_places(one_layer((matrix.rows, matrix.columns), POSITIONS), [matrix], path)
    x = (np.random.default_rng(seed).standard_normal((1, POSITIONS, matrix.columns)) + offset).astype(np.float32)
    # 255 steps from the smallest to the largest value, zero among them: each value moves by half a step at most.
    spans = np.maximum(x.max(axis=-1), 0) - np.minimum(x.min(axis=-1), 0)
    half_steps = 0 if matrix.bits == 32 else spans[..., None] / 255 / 2 * (1 + 1e-5)
    bound = half_steps * np.abs(matrix.weights).sum(axis=1) + summation_error(x, matrix.weights)
    found = interpret(path, "layer", x=x)["y"]
    assert (np.abs(found - product(x, matrix.weights)) <= bound).all()


def rounded(weights: np.ndarray, bits: int, block_size: int) -> GivenMatrix:
    """As the converter rounds from extremes; a block size of 0 means a scale a row."""
    rows, columns = weights.shape
    whole_row = 1 << (columns - 1).bit_length()
    scale_bits = 16 if block_size else 32
    matrix = quantize_matrix(
        weights, Precision(bits, block_size or whole_row, scale_bits=scale_bits, positive_scales=True)
    )
    unsigned = unpack(matrix.values, bits).reshape(rows, -1)[:, :columns]
    return GivenMatrix(unsigned.astype(np.int64) - (1 << (bits - 1)), matrix.scales, bits)


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.parametrize(("bits", "block_size"), [(8, 0), (4, 32), (4, 0)])
@pytest.mark.parametrize("tiny", [0.0, 1e-44, 1e-38, 1e-30])
def test_rows_that_are_zero_or_nearly_so_do_not_keep_a_layer_from_running(
    tmp_path: Path, run: Runner, bits: int, block_size: int, tiny: float
) -> None:
    weights = np.random.default_rng(0).standard_normal((5, 96)).astype(np.float32)
    weights[0], weights[3, :32] = tiny, -tiny
    matrix = rounded(weights, bits, block_size)
    fill_places(one_layer((5, 96), POSITIONS), [matrix], tmp_path / "layer.tflite")
    x = exact_inputs(96, 0)
    found = run(tmp_path / "layer.tflite", "layer", x=x)["y"]
    assert (np.abs(found[..., 0]) < 1e-20).all()
    assert (np.abs(found - product(x, matrix.weights)) <= summation_error(x, matrix.weights)).all()


@pytest.mark.parametrize(
    ("bits", "block_size", "quantize"),
    [
        (8, 0, recipe.dynamic_wi8c_afp32),
        (4, 0, recipe.dynamic_wi4c_afp32),
        (4, 32, recipe.dynamic_wi4b32_afp32),
        (4, 64, recipe.dynamic_wi4b64_afp32),
    ],
)
def test_a_matrix_lies_in_the_file_as_googles_quantizer_would_have_put_it_there(
    tmp_path: Path, bits: int, block_size: int, quantize: Callable[[], Any]
) -> None:
    weights = np.random.default_rng(0).standard_normal((6, 128)).astype(np.float32)
    # What is largest is positive in the first rows, and negative in the others.
    weights *= np.where(np.arange(6) < 3, 1, -1)[:, None] * np.sign(weights.max(axis=1) + weights.min(axis=1))[:, None]
    ours = tmp_path / "ours.tflite"
    fill_places(one_layer((6, 128), POSITIONS), [rounded(weights, bits, block_size)], ours)
    google = quantizer.Quantizer(float_layer(weights))
    google.load_quantization_recipe(quantize())
    their_tensor, theirs = stored_matrix(bytes(google.quantize().quantized_model))
    our_tensor, mine = stored_matrix(ours.read_bytes())
    assert describe_tensor(our_tensor) == describe_tensor(their_tensor)
    assert mine["layout"] == theirs["layout"]
    # They put the largest magnitude on the last integer above zero. Ours is the smallest scale that reaches both
    # extremes; in blocks, ours is rounded to bfloat16 (2 ** -9), theirs to half precision.
    half = 1 << (bits - 1)
    assert (mine["scales"] <= theirs["scales"] * (1 + 2**-8)).all()
    assert (mine["scales"] >= theirs["scales"] * ((half - 1) / half) * (1 - 2**-8)).all()
    steps = np.maximum(mine["scales"], theirs["scales"]).repeat(block_size or 128, axis=1)
    for found in (mine, theirs):
        assert (np.abs(found["weights"] - weights) <= steps * (0.5 + half * 2**-8)).all()
    if not block_size:
        # Then both have the same scale, and the same integers.
        np.testing.assert_allclose(mine["scales"][:3], theirs["scales"][:3], rtol=1e-6)
        assert np.array_equal(mine["integers"][:3], theirs["integers"][:3])


@pytest.mark.parametrize(("bits", "quantize"), [(8, recipe.dynamic_wi8c_afp32), (4, recipe.dynamic_wi4b32_afp32)])
def test_the_same_integers_give_the_same_answer_whoever_wrote_the_file(
    tmp_path: Path, bits: int, quantize: Callable[[], Any]
) -> None:
    weights = np.random.default_rng(1).standard_normal((6, 128)).astype(np.float32)
    google = quantizer.Quantizer(float_layer(weights))
    google.load_quantization_recipe(quantize())
    content = bytes(google.quantize().quantized_model)
    (tmp_path / "theirs.tflite").write_bytes(content)
    _, theirs = stored_matrix(content)
    matrix = GivenMatrix(theirs["integers"].astype(np.int64), theirs["scales"], bits)
    fill_places(one_layer((6, 128), POSITIONS), [matrix], tmp_path / "ours.tflite")
    x = np.random.default_rng(2).standard_normal((1, POSITIONS, 128)).astype(np.float32)
    mine = interpret(tmp_path / "ours.tflite", "layer", x=x)["y"]
    assert np.array_equal(mine, interpret(tmp_path / "theirs.tflite", "layer", x=x)["y"])


def float_layer(weights: np.ndarray) -> bytearray:
    graph = GraphWriter()
    x = graph.tensor("x", [1, POSITIONS, weights.shape[1]], FLOAT)
    y = add_layer(graph, x, POSITIONS, graph.constant("matrix_0", weights), weights.shape, "y")
    return bytearray(graph.finish("layer", {"x": x}, {"y": y}))


def stored_matrix(content: bytes) -> tuple[Any, dict[str, Any]]:
    """The tensor of a file's matrix; its integers, scales and weights, and how they are laid out."""
    model = schema.ModelT.InitFromPackedBuf(bytearray(content), 0)
    (subgraph,) = model.subgraphs
    (tensor,) = (each for each in subgraph.tensors if each.name == b"matrix_0")
    bits = {schema.TensorType.INT8: 8, schema.TensorType.INT4: 4}[tensor.type]
    rows, columns = tensor.shape
    half = 1 << (bits - 1)
    packed = np.frombuffer(buffer_bytes(content, model.buffers[tensor.buffer]), np.uint8).reshape(rows, -1)
    integers = (unpack(packed, bits).astype(np.int64) + half) % (2 * half) - half
    quantization = tensor.quantization
    layout = [quantization.quantizedDimension, quantization.detailsType]
    if quantization.details is None:
        scales = np.asarray(quantization.scale, np.float32)[:, None]
        layout += [np.asarray(quantization.zeroPoint).tolist()]
    else:
        details = quantization.details
        of_scales = subgraph.tensors[details.scales]
        layout += [quantization.scale, quantization.zeroPoint, details.blockSize, details.zeroPoints]
        layout += [of_scales.name, of_scales.shape.tolist(), of_scales.type, of_scales.quantization]
        stored = buffer_bytes(content, model.buffers[of_scales.buffer])
        scales = np.frombuffer(stored, np.float16).astype(np.float32).reshape(of_scales.shape)
    weights = integers * scales.repeat(columns // scales.shape[1], axis=1)
    return tensor, {"layout": layout, "integers": integers, "scales": scales, "weights": weights}


def buffer_bytes(content: bytes, buffer: Any) -> bytes:
    """Within the flatbuffer, or behind it."""
    if buffer.data is not None:
        return bytes(bytearray(buffer.data))
    return content[buffer.offset : buffer.offset + buffer.size]


def describe_tensor(tensor: Any) -> dict[str, Any]:
    described = {name: getattr(tensor, name) for name in ("name", "type", "isVariable", "shapeSignature", "sparsity")}
    return described | {"shape": tensor.shape.tolist()}


@pytest.mark.parametrize("run", RUNNERS)
def test_several_matrices_of_different_kinds_find_their_own_places(tmp_path: Path, run: Runner) -> None:
    first, second = random_matrix(64, 16, 8, 0, 1), random_matrix(5, 64, 32, 0, 2)
    third = random_matrix(7, 64, 4, 32, 3)
    graph = GraphWriter()
    x = graph.tensor("x", [1, POSITIONS, 16], FLOAT)
    places = [add_place(graph, number, (m.rows, m.columns)) for number, m in enumerate((first, second, third))]
    middle = add_layer(graph, x, POSITIONS, places[0], (64, 16), "middle")
    ends = {
        "float": add_layer(graph, middle, POSITIONS, places[1], (5, 64), "float"),
        "blocks": add_layer(graph, middle, POSITIONS, places[2], (7, 64), "blocks"),
    }
    content = graph.finish("layers", {"x": x}, {"middle": middle, **ends})
    fill_places(content, [first, second, third], tmp_path / "layers.tflite")
    inputs = exact_inputs(16, 0)
    found = run(tmp_path / "layers.tflite", "layers", x=inputs)
    middle_values = product(inputs, first.weights)
    assert np.allclose(found["middle"], middle_values, rtol=1e-5, atol=1e-3)
    assert np.allclose(found["float"], product(middle_values, second.weights), rtol=1e-5, atol=1e-3)
    span = middle_values.max(axis=-1, keepdims=True) - middle_values.min(axis=-1, keepdims=True)
    bound = span / 255 * np.abs(third.weights).sum(axis=1)
    assert (np.abs(found["blocks"] - product(middle_values, third.weights)) <= bound).all()


def shared_by_two(shape: tuple[int, int]) -> bytes:
    """The signature `double` gives twice what `layer` gives, from the same matrix, and for another number of rows."""
    graph = GraphWriter()
    x = graph.tensor("x", [1, POSITIONS, shape[1]], FLOAT)
    y = add_layer(graph, x, POSITIONS, add_place(graph, 0, shape), shape, "y")
    graph.signature("layer", {"x": x}, {"y": y})
    x = graph.tensor("x", [1, 1, shape[1]], FLOAT)
    y = add_layer(graph, x, 1, add_place(graph, 0, shape), shape, "y")
    twice = graph.tensor("twice", [1, 1, shape[0]], FLOAT)
    graph.operator(OPERATORS.ADD, [y, y], twice, (OPTIONS.AddOptions, schema.AddOptionsT()))
    return graph.finish("double", {"x": x}, {"y": twice})


@pytest.mark.parametrize(("bits", "block_size"), [(8, 0), (4, 32), (32, 0)])
def test_signatures_share_one_copy_of_a_matrix_and_one_alone_can_be_kept_under_another_name(
    tmp_path: Path, bits: int, block_size: int
) -> None:
    matrix = random_matrix(64, 512, bits, block_size, 4)
    both, alone = tmp_path / "both.tflite", tmp_path / "alone.tflite"
    (filled,) = fill_places(shared_by_two((64, 512)), [matrix], both)
    assert both.stat().st_size < 1.5 * filled.values.stride * 64 + 4096
    x = exact_inputs(512, 1)
    wanted = product(x, matrix.weights)
    tolerance = summation_error(x, matrix.weights)
    for run in RUNNERS:
        assert (np.abs(run(both, "layer", x=x)["y"] - wanted) <= tolerance).all()
        assert (np.abs(run(both, "double", x=x[:, :1])["y"] - 2 * wanted[:, :1]) <= 2 * tolerance[:, :1]).all()
    keep_signatures(both, {"double": "decode"}, alone)
    model = schema.Model.GetRootAsModel(alone.read_bytes(), 0)
    assert [model.SignatureDefs(i).SignatureKey() for i in range(model.SignatureDefsLength())] == [b"decode"]
    for run in RUNNERS:
        kept = run(alone, "decode", x=x[:, :1])["y"]
        assert np.array_equal(kept, run(both, "double", x=x[:, :1])["y"])


def test_a_signature_that_is_not_there_cannot_be_kept_or_described(tmp_path: Path) -> None:
    path = tmp_path / "both.tflite"
    fill_places(shared_by_two((4, 32)), [random_matrix(4, 32, 8, 0, 0)], path)
    with pytest.raises(ValueError, match="triple"):
        keep_signatures(path, {"layer": "layer", "triple": "decode"}, tmp_path / "alone.tflite")
    assert not (tmp_path / "alone.tflite").exists()
    with pytest.raises(ValueError, match="triple"):
        describe_graph(path, "triple")


def test_the_manifest_describes_the_signature_that_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "both.tflite"
    fill_places(shared_by_two((4, 32)), [random_matrix(4, 32, 8, 0, 0)], path)
    for signature, positions in (("layer", POSITIONS), ("double", 1)):
        assert describe_graph(path, signature) == Graph(
            file="both.tflite",
            inputs=(Tensor(name="x", dtype="float32", shape=(1, positions, 32)),),
            outputs=(Tensor(name="y", dtype="float32", shape=(1, positions, 4)),),
        )


@pytest.mark.parametrize("shape", [(32, 5), (5, 31), (6, 32)])
def test_a_matrix_of_another_shape_than_its_place_is_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"\[{shape[0]}, {shape[1]}\].*\[5, 32\]"):
        fill_places(one_layer(shape, POSITIONS), [random_matrix(5, 32, 8, 0, 0)], tmp_path / "layer.tflite")
    assert not (tmp_path / "layer.tflite").exists()


@given(matrix=matrices())
def test_the_rows_of_a_matrix_lie_where_the_file_was_said_to_have_them(tmp_path: Path, matrix: GivenMatrix) -> None:
    path = tmp_path / "layer.tflite"
    (filled,) = fill_places(one_layer((matrix.rows, matrix.columns), POSITIONS), [matrix], path)
    parts: list[MatrixPart] = list(replace(matrix, rows_at_once=matrix.rows).parts())
    content = path.read_bytes()
    assert rows_at(content, filled.values, matrix.rows) == np.ascontiguousarray(parts[0].values).tobytes()
    if matrix.bits == 32:
        assert filled == FilledMatrix(filled.values, None, None)
        return
    assert filled.scale_storage == ("float16" if matrix.block_size else "float32")
    assert filled.scales is not None
    stored = parts[0].scales.astype(filled.scale_storage)
    assert rows_at(content, filled.scales, matrix.rows) == stored.tobytes()


def rows_at(content: bytes, region: RowRegion, rows: int) -> bytes:
    assert region.file == "layer.tflite"
    return content[region.offset : region.offset + rows * region.stride]
