"""Linear layers of the audio and vision encoders, which clip their input and output to bounds that training found.

The maths is that of transformers' `Gemma4ClippableLinear`; the bounds are scalars of the checkpoint.
"""

from __future__ import annotations

import math

from cabochon_convert.checkpoint import Checkpoint, CheckpointError
from cabochon_convert.graph_onnx import OnnxGraph
from cabochon_convert.linear_onnx import LinearWriter
from cabochon_convert.matrices import MatrixRows


class ClippedLinearWriter:
    """Adds such layers to a graph.

    Args:
        graph: under construction.
        writer: of the same graph; knows the precisions.
        checkpoint: holds matrices and bounds.
        prefix: what the checkpoint's tensor names have before the names of layers.
        clips: whether there are bounds.
    """

    def __init__(
        self, graph: OnnxGraph, writer: LinearWriter, checkpoint: Checkpoint, prefix: str, *, clips: bool
    ) -> None:
        self._graph = graph
        self._writer = writer
        self._checkpoint = checkpoint
        self._prefix = prefix
        self._clips = clips

    def linear(self, x: str, name: str, outputs: int, inputs: int) -> str:
        """x [..., inputs] to [..., outputs]; the layer's name is also that of its nodes."""
        matrix = MatrixRows.whole(f"{self._prefix}{name}.linear.weight", outputs, inputs)
        if not self._clips:
            return self._writer.linear(x, matrix, name)
        x = clip(self._graph, x, f"{name}.input", *self._bounds(name, "input"))
        y = self._writer.linear(x, matrix, f"{name}.product")
        return clip(self._graph, y, f"{name}.output", *self._bounds(name, "output"))

    def _bounds(self, name: str, side: str) -> tuple[float, float]:
        names = (f"{self._prefix}{name}.{side}_{end}" for end in ("min", "max"))
        low, high = (float(self._checkpoint.read(bound, (), may_be_infinite=True)) for bound in names)
        if not low <= high:
            raise CheckpointError(f"the {side} of {name} is clipped between {low} and {high}, which holds no number.")
        return low, high


def clip(graph: OnnxGraph, x: str, output: str, low: float, high: float) -> str:
    """x between two bounds; x itself where both are infinite."""
    if math.isinf(low) and math.isinf(high):
        return x
    return graph.node("Clip", [x, *(graph.constant(f"bound.{bound!r}", bound) for bound in (low, high))], output)
