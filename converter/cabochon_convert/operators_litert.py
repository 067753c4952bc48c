"""LiteRT's operators by what they compute, on values whose shapes are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from cabochon_convert.graph_writer_litert import GraphWriter

FLOAT, INTEGER = schema.TensorType.FLOAT32, schema.TensorType.INT32
_CODES, _OPTIONS = schema.BuiltinOperator, schema.BuiltinOptions


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the signature that is being written."""

    tensor: int
    shape: tuple[int, ...]
    kind: int = FLOAT


class Operators:
    """Writes the operators of one signature."""

    def __init__(self, graph: GraphWriter) -> None:
        self._graph = graph

    def input(self, name: str, shape: Sequence[int], kind: int = FLOAT) -> Value:
        """A value that the signature is to be given."""
        return Value(self._graph.tensor(name, shape, kind), tuple(shape), kind)

    def constant(self, values: np.ndarray, name: str = "constant") -> Value:
        """Known numbers; int32 or float32."""
        kind = INTEGER if values.dtype == np.int32 else FLOAT
        return Value(self._graph.constant(name, values), values.shape, kind)

    def matrix(self, number: int, rows: int, columns: int) -> Value:
        """A place for one; those of one number share its integers."""
        tensor = self._graph.tensor(f"matrix_{number}", [rows, columns], FLOAT)
        self._graph.place(tensor, number)
        return Value(tensor, (rows, columns))

    def add(self, left: Value, right: Value) -> Value:
        """left + right, of shapes that fit each other."""
        return self._pair(_CODES.ADD, left, right, (_OPTIONS.AddOptions, schema.AddOptionsT()))

    def subtract(self, left: Value, right: Value) -> Value:
        """left - right"""
        return self._pair(_CODES.SUB, left, right, (_OPTIONS.SubOptions, schema.SubOptionsT()))

    def multiply(self, left: Value, right: Value) -> Value:
        """left * right, number by number."""
        return self._pair(_CODES.MUL, left, right, (_OPTIONS.MulOptions, schema.MulOptionsT()))

    def maximum(self, left: Value, right: Value) -> Value:
        """The larger ones."""
        return self._pair(_CODES.MAXIMUM, left, right, _limits())

    def minimum(self, left: Value, right: Value) -> Value:
        """The smaller ones."""
        return self._pair(_CODES.MINIMUM, left, right, _limits())

    def cosine(self, angles: Value) -> Value:
        """Of radians."""
        return self._node(_CODES.COS, [angles], angles.shape)

    def sine(self, angles: Value) -> Value:
        """Of radians."""
        return self._node(_CODES.SIN, [angles], angles.shape)

    def gelu(self, x: Value) -> Value:
        """GELU by its approximation with tanh."""
        options = schema.GeluOptionsT()
        options.approximate = True
        return self._node(_CODES.GELU, [x], x.shape, (_OPTIONS.GeluOptions, options))

    def softmax(self, x: Value) -> Value:
        """Over the last axis."""
        options = schema.SoftmaxOptionsT()
        options.beta = 1.0
        return self._node(_CODES.SOFTMAX, [x], x.shape, (_OPTIONS.SoftmaxOptions, options))

    def root_mean_square_norm(self, x: Value, weight: Value, epsilon: float) -> Value:
        """x / sqrt(mean(x²) + epsilon) * weight, over the last axis."""
        options = schema.ReducerOptionsT()
        options.keepDims = True
        axis = self.constant(np.array([len(x.shape) - 1], np.int32))
        square = self.multiply(x, x)
        mean = self._node(_CODES.MEAN, [square, axis], (*x.shape[:-1], 1), (_OPTIONS.ReducerOptions, options))
        mean = self.add(mean, self.constant(np.array(epsilon, np.float32)))
        return self.multiply(self.multiply(x, self._node(_CODES.RSQRT, [mean], mean.shape)), weight)

    def linear(self, x: Value, matrix: Value) -> Value:
        """x [..., columns] times the transposed matrix [rows, columns]."""
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = True
        no_bias = Value(-1, ())
        shape = (*x.shape[:-1], matrix.shape[0])
        inputs = [x, matrix, no_bias]
        return self._node(_CODES.FULLY_CONNECTED, inputs, shape, (_OPTIONS.FullyConnectedOptions, options))

    def multiply_transposed(self, left: Value, right: Value) -> Value:
        """left [..., n, k] times right [..., m, k], transposed: [..., n, m]."""
        options = schema.BatchMatMulOptionsT()
        options.adjY = True
        shape = (*left.shape[:-1], right.shape[-2])
        return self._node(_CODES.BATCH_MATMUL, [left, right], shape, (_OPTIONS.BatchMatMulOptions, options))

    def concatenate(self, values: Sequence[Value], axis: int) -> Value:
        """Along an axis."""
        options = schema.ConcatenationOptionsT()
        options.axis = axis
        first = values[0]
        total = sum(value.shape[axis] for value in values)
        shape = tuple(total if index == axis else size for index, size in enumerate(first.shape))
        return self._node(_CODES.CONCATENATION, values, shape, (_OPTIONS.ConcatenationOptions, options), first.kind)

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """The same numbers in another shape."""
        assert prod(shape) == prod(x.shape)
        target = self.constant(np.array(shape, np.int32))
        return self._node(_CODES.RESHAPE, [x, target], tuple(shape), kind=x.kind)

    def cut(self, x: Value, start: Sequence[int] | Value, shape: Sequence[int]) -> Value:
        """A part of such a shape.

        Args:
            start: of the part on each axis; a value is int32 [axes].
        """
        begin = start if isinstance(start, Value) else self.constant(np.array(start, np.int32))
        size = self.constant(np.array(shape, np.int32))
        options = (_OPTIONS.SliceOptions, schema.SliceOptionsT())
        return self._node(_CODES.SLICE, [x, begin, size], tuple(shape), options, x.kind)

    def to_float(self, x: Value) -> Value:
        """int32 as float32."""
        options = schema.CastOptionsT()
        options.inDataType, options.outDataType = INTEGER, FLOAT
        return self._node(_CODES.CAST, [x], x.shape, (_OPTIONS.CastOptions, options))

    def largest(self, x: Value, count: int) -> Value:
        """Where the largest of the last axis are, the largest first: int32 [..., count]."""
        shape = (*x.shape[:-1], count)
        values = self._graph.tensor("largest", shape, FLOAT)
        places = self._graph.tensor("largest_places", shape, INTEGER)
        number = self.constant(np.array(count, np.int32))
        options = (_OPTIONS.TopKV2Options, schema.TopKV2OptionsT())
        self._graph.operator(_CODES.TOPK_V2, [x.tensor, number.tensor], [values, places], options)
        return Value(places, shape, INTEGER)

    def pick_rows(self, rows: Value, numbers: Value) -> Value:
        """Rows of these numbers, int32 [count]: [count, ...]."""
        options = schema.GatherOptionsT()
        shape = (*numbers.shape, *rows.shape[1:])
        return self._node(_CODES.GATHER, [rows, numbers], shape, (_OPTIONS.GatherOptions, options), rows.kind)

    def look_up(self, matrix: Value, rows: Value) -> Value:
        """Rows of a matrix, whose integers become floating point: int32 [count] to [count, columns]."""
        return self._node(_CODES.EMBEDDING_LOOKUP, [rows, matrix], (*rows.shape, matrix.shape[1]))

    def _pair(self, code: int, left: Value, right: Value, options: tuple[int, Any]) -> Value:
        shape = np.broadcast_shapes(left.shape, right.shape)
        return self._node(code, [left, right], shape, options, left.kind)

    def _node(
        self,
        code: int,
        inputs: Sequence[Value],
        shape: tuple[int, ...],
        options: tuple[int, Any] | None = None,
        kind: int = FLOAT,
    ) -> Value:
        output = self._graph.tensor("value", shape, kind)
        self._graph.operator(code, [value.tensor for value in inputs], output, options)
        return Value(output, shape, kind)


def _limits() -> tuple[int, Any]:
    return _OPTIONS.MaximumMinimumOptions, schema.MaximumMinimumOptionsT()
