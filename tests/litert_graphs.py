"""Small LiteRT graphs for tests, and LiteRT's two ways to run them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.interpreter import Interpreter

from cabochon_convert.flatbuffer_litert import MatrixPart
from cabochon_convert.graph_writer_litert import GraphWriter
from cabochon_convert.quantize import pack

FLOAT, INTEGER = schema.TensorType.FLOAT32, schema.TensorType.INT32
OPERATORS, OPTIONS = schema.BuiltinOperator, schema.BuiltinOptions


@dataclass(frozen=True, slots=True)
class GivenMatrix:
    """A matrix on its way into a file, of integers and scales that a test chose."""

    integers: np.ndarray
    """[rows, columns]; float32 weights where there are no scales."""
    scales: np.ndarray | None
    """[rows, blocks]"""
    bits: int
    rows_at_once: int = 3

    @property
    def rows(self) -> int:
        return len(self.integers)

    @property
    def columns(self) -> int:
        return int(self.integers.shape[1])

    @property
    def block_size(self) -> int:
        blocks = 1 if self.scales is None else self.scales.shape[1]
        return self.columns // blocks if blocks > 1 else 0

    @property
    def weights(self) -> np.ndarray:
        """What it stands for: float64 [rows, columns]."""
        if self.scales is None:
            return self.integers.astype(np.float64)
        return self.integers * np.repeat(self.scales.astype(np.float64), self.columns // self.scales.shape[1], axis=1)

    def parts(self) -> Iterator[MatrixPart]:
        for start in range(0, self.rows, self.rows_at_once):
            some = slice(start, start + self.rows_at_once)
            if self.scales is None:
                yield MatrixPart(self.integers[some], np.zeros((len(self.integers[some]), 0), np.float32))
            else:
                unsigned = (self.integers[some] & ((1 << self.bits) - 1)).astype(np.uint8)
                yield MatrixPart(pack(unsigned, self.bits), self.scales[some])


def random_matrix(rows: int, columns: int, bits: int, block_size: int, seed: int) -> GivenMatrix:
    """Any integers of so many bits, and scales that bfloat16 holds; a block size of 0 means a scale a row."""
    generator = np.random.default_rng(seed)
    if bits == 32:
        return GivenMatrix(generator.standard_normal((rows, columns)).astype(np.float32), None, bits)
    half = 1 << (bits - 1)
    integers = generator.integers(-half, half, (rows, columns))
    shape = (rows, columns // block_size if block_size else 1)
    scales = np.ldexp(1 + generator.integers(0, 128, shape) / 128, generator.integers(-9, -3, shape))
    return GivenMatrix(integers, scales.astype(np.float32), bits)


def add_layer(graph: GraphWriter, inputs: int, positions: int, matrix: int, shape: tuple[int, int], name: str) -> int:
    """A fully connected layer whose matrix is a place or a constant; returns its output [1, positions, rows]."""
    options = schema.FullyConnectedOptionsT()
    options.keepNumDims = True
    output = graph.tensor(name, [1, positions, shape[0]], FLOAT)
    no_bias = -1
    graph.operator(
        OPERATORS.FULLY_CONNECTED, [inputs, matrix, no_bias], output, (OPTIONS.FullyConnectedOptions, options)
    )
    return output


def add_place(graph: GraphWriter, number: int, shape: tuple[int, int]) -> int:
    """The tensor of a matrix."""
    matrix = graph.tensor(f"matrix_{number}", shape, FLOAT)
    graph.place(matrix, number)
    return matrix


def one_layer(shape: tuple[int, int], positions: int) -> bytes:
    """y = x times the transposed matrix: [1, positions, columns] to [1, positions, rows]."""
    graph = GraphWriter()
    x = graph.tensor("x", [1, positions, shape[1]], FLOAT)
    y = add_layer(graph, x, positions, add_place(graph, 0, shape), shape, "y")
    return graph.finish("layer", {"x": x}, {"y": y})


def interpret(path: Path, signature: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """What LiteRT's interpreter, of TensorFlow Lite's time, makes of them."""
    runner = Interpreter(str(path)).get_signature_runner(signature)
    return {name: np.array(value) for name, value in runner(**inputs).items()}


def run_compiled(path: Path, signature: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """What LiteRT's compiled model makes of them."""
    model: Any = CompiledModel.from_file(str(path))
    names: Mapping[str, Any] = model.get_output_tensor_details(signature)
    given = {name: model.create_input_buffer_by_name(signature, name) for name in inputs}
    results = {name: model.create_output_buffer_by_name(signature, name) for name in names}
    for name, buffer in given.items():
        buffer.write(inputs[name])
    model.run_by_name(signature, given, results)
    found = {}
    for name, details in names.items():
        shape = tuple(details["shape"])
        found[name] = results[name].read(int(np.prod(shape)), np.dtype(details["dtype"])).reshape(shape)
    return found


RUNNERS = (interpret, run_compiled)
