"""Linear layers and norms as ONNX nodes, at the precision that the recipe asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from cabochon.manifest import AppliedPrecision, Graph, RowRegion
from cabochon_convert.checkpoint import Checkpoint
from cabochon_convert.graph_onnx import MICROSOFT, OnnxGraph
from cabochon_convert.matrices import LinearSettings, MatrixRows, apply_precision, quantized_parts
from cabochon_convert.quantize import Precision
from cabochon_convert.recipes import FLOAT
from cabochon_convert.trained_integers import ActivationScales


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """Where a weight matrix ended up."""

    precision: Precision
    values: RowRegion | None
    """None when it is small enough to lie inside the graph file."""
    scales: RowRegion | None
    zero_points: RowRegion | None = None


@dataclass(frozen=True, slots=True)
class BuiltEncoder:
    """What the manifest has to say about the graph of an encoder."""

    graph: Graph
    applied: dict[str, AppliedPrecision]


class LinearWriter:
    """Adds linear layers to a graph and keeps account of the precisions that were applied."""

    def __init__(self, graph: OnnxGraph, checkpoint: Checkpoint, settings: LinearSettings) -> None:
        self._graph = graph
        self._checkpoint = checkpoint
        self._settings = settings
        self._rounded: set[str] = set()
        self.applied: dict[str, AppliedPrecision] = {}

    def precision(self, tensor: str, shape: tuple[int, int]) -> Precision:
        """How a matrix is to be stored."""
        return self._settings.precision(tensor, shape)

    def linear(self, x: str, matrix: MatrixRows, output: str) -> str:
        """x [..., inputs] times the transposed matrix: [..., rows]."""
        self.head(x, matrix, output)
        return output

    def head(self, x: str, matrix: MatrixRows, output: str) -> StoredMatrix:
        """A linear layer that reports where its rows lie, so that they can serve as embeddings too."""
        scales = self._activation_scales(matrix.tensor)
        product = f"{output}.product" if scales.output else output
        stored = self._linear(self._round_input(x, scales), [matrix], product)
        self._round_output(product, output, scales)
        return stored

    def fused(self, x: str, matrices: Sequence[MatrixRows], outputs: Sequence[str]) -> list[str]:
        """Several linear layers of one input: one multiplication and a split where their precisions agree."""
        scales = [self._activation_scales(matrix.tensor) for matrix in matrices]
        precisions = {self._settings.precision(matrix.tensor, matrix.shape) for matrix in matrices}
        if len(precisions) > 1 or len({scale.input for scale in scales}) > 1:
            return [self.linear(x, matrix, output) for matrix, output in zip(matrices, outputs, strict=True)]
        together = outputs[0] + ".fused"
        self._linear(self._round_input(x, scales[0]), matrices, together)
        sizes = [len(matrix.rows) for matrix in matrices]
        split = self._graph.constant("split." + "_".join(map(str, sizes)), sizes, np.int64)
        products = [
            f"{output}.product" if scale.output else output for output, scale in zip(outputs, scales, strict=True)
        ]
        self._graph.multi_node("Split", [together, split], products, {"axis": -1})
        for product, output, scale in zip(products, outputs, scales, strict=True):
            self._round_output(product, output, scale)
        return list(outputs)

    def norm(self, x: str, tensor: str, size: int, output: str, epsilon: float) -> str:
        """RMS norm over the last axis, with a weight of the checkpoint."""
        weight = self._graph.weight(tensor, self._checkpoint.read(tensor, (size,)))
        return self.norm_with(x, weight, output, epsilon)

    def norm_with(self, x: str, weight: str, output: str, epsilon: float) -> str:
        """RMS norm with a weight that is in the graph already."""
        attributes = {"axis": -1, "epsilon": epsilon, "stash_type": 1}
        return self._graph.node("SimplifiedLayerNormalization", [x, weight], output, attributes)

    def _linear(self, x: str, matrices: Sequence[MatrixRows], output: str) -> StoredMatrix:
        precision = self._settings.precision(matrices[0].tensor, matrices[0].shape)
        is_whole = len(matrices) == 1 and len(matrices[0].rows) == matrices[0].shape[0]
        name = matrices[0].tensor if is_whole else output + ".weight"
        for matrix in matrices:
            self.applied[matrix.tensor] = apply_precision(matrix.tensor, precision if precision.is_integer else FLOAT)
        if precision.is_integer:
            return self._quantized(x, matrices, precision, name, output)
        return self._floating(x, matrices, name, output)

    def _floating(self, x: str, matrices: Sequence[MatrixRows], name: str, output: str) -> StoredMatrix:
        outputs, inputs = sum(len(matrix.rows) for matrix in matrices), matrices[0].shape[1]
        values = self._graph.stream_weight(name, np.dtype(np.float32), (outputs, inputs), self._parts(matrices))
        self._graph.node("FusedMatMul", [x, name], output, {"transB": 1}, MICROSOFT)
        return StoredMatrix(Precision(32), values, None)

    def _quantized(
        self, x: str, matrices: Sequence[MatrixRows], precision: Precision, name: str, output: str
    ) -> StoredMatrix:
        outputs, inputs = sum(len(matrix.rows) for matrix in matrices), matrices[0].shape[1]
        blocks = -(-inputs // precision.block_size)
        scales: list[np.ndarray] = []
        zero_points: list[np.ndarray] = []

        def values() -> Iterator[np.ndarray]:
            for matrix in matrices:
                for quantized in quantized_parts(self._checkpoint, self._settings, matrix, precision):
                    scales.append(quantized.scales)
                    if quantized.zero_points is not None:
                        zero_points.append(quantized.zero_points)
                    yield quantized.values

        shape = (outputs, blocks, precision.block_size * precision.bits // 8)
        values_region = self._graph.stream_weight(name + ".values", np.dtype(np.uint8), shape, values())
        scales_region = self._write_scales(name + ".scales", (outputs, blocks), scales, precision)
        inputs_of_node = [x, name + ".values", name + ".scales"]
        zero_region = None
        if zero_points:
            zero_shape = (outputs, zero_points[0].shape[1])
            zero_region = self._graph.stream_weight(name + ".zero_points", np.dtype(np.uint8), zero_shape, zero_points)
            inputs_of_node.append(name + ".zero_points")
        attributes = {
            "K": inputs,
            "N": outputs,
            "bits": precision.bits,
            "block_size": precision.block_size,
            "accuracy_level": self._settings.accuracy_level,
        }
        self._graph.node("MatMulNBits", inputs_of_node, output, attributes, MICROSOFT)
        return StoredMatrix(precision, values_region, scales_region, zero_region)

    def _write_scales(
        self, name: str, shape: tuple[int, int], scales: Sequence[np.ndarray], precision: Precision
    ) -> RowRegion | None:
        if precision.scale_bits == 32:
            return self._graph.stream_weight(name, np.dtype(np.float32), shape, scales)
        half = [part.astype(np.float16) for part in scales]
        region = self._graph.stream_weight(f"{name}.half", np.dtype(np.float16), shape, half)
        # Half the bytes on disk: onnxruntime does this once, when it loads the graph.
        self._graph.node("Cast", [f"{name}.half"], name, {"to": TensorProto.FLOAT})
        return region

    def _activation_scales(self, tensor: str) -> ActivationScales:
        integers = self._settings.integers
        return integers.activation_scales(tensor) if integers else ActivationScales()

    def _round_input(self, x: str, scales: ActivationScales) -> str:
        """Rounded once for all layers that read it with the same scale."""
        if not scales.input:
            return x
        output = f"{x}.rounded.{scales.input!r}"
        if output not in self._rounded:
            self._rounded.add(output)
            self._round(x, output, scales.input)
        return output

    def _round_output(self, product: str, output: str, scales: ActivationScales) -> None:
        if scales.output:
            self._round(product, output, scales.output)

    def _round(self, x: str, output: str, scale: float) -> None:
        """To the nearest multiple of the scale, from -128 to 127 of them: what training did to activations.

        Not with QuantizeLinear: onnxruntime 1.31 turns pairs of it into others of uint8 and then refuses the graph.
        """
        graph = self._graph
        step, low, high = (graph.constant(f"value.{value!r}", value) for value in (scale, -128.0, 127.0))
        steps = graph.node("Div", [x, step], f"{output}.steps")
        nearest = graph.node("Round", [steps], f"{output}.nearest")
        clipped = graph.node("Clip", [nearest, low, high], f"{output}.integers")
        graph.node("Mul", [clipped, step], output)

    def _parts(self, matrices: Sequence[MatrixRows]) -> Iterator[np.ndarray]:
        for matrix in matrices:
            yield from self._checkpoint.read_rows(matrix.tensor, matrix.shape, matrix.rows)
