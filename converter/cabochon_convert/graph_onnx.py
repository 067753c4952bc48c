"""Writing an ONNX graph whose weights stream into a data file beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from cabochon.manifest import Graph, RowRegion, Tensor

MICROSOFT = "com.microsoft"
# Opset 21 and IR 10 are what onnxruntime 1.20, and so its Android release, can read.
OPSET = 21
IR_VERSION = 10
# Smaller weights stay inside the graph file, larger ones start at a page of the data file so that they can be mapped.
INLINE_BYTES = 1024
PAGE_BYTES = 4096

Attribute = int | float | str | Sequence[int] | onnx.GraphProto


class OnnxGraph:
    """A graph under construction: nodes in memory, weights on disk. Use it as a context manager, then `finish` it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._data_path = path.with_name(path.name + ".data")
        self._data = self._data_path.open("wb")
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, TensorProto] = {}
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self._states: list[Tensor] = []
        self._next_states: list[Tensor] = []

    def __enter__(self) -> OnnxGraph:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.close()

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        """Declare an input; a dimension is a number or the name of one that varies."""
        self._inputs.append(Tensor(name=name, dtype=dtype, shape=tuple(shape)))
        return name

    def output(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        """Declare that a value is an output."""
        self._outputs.append(Tensor(name=name, dtype=dtype, shape=tuple(shape)))
        return name

    def state(self, name: str, beginning: np.ndarray) -> str:
        """Declare an input that whoever runs the graph may leave out: it has its beginning's values then."""
        self._states.append(Tensor(name=name, dtype=str(beginning.dtype), shape=beginning.shape))
        return self.weight(name, beginning)

    def next_state(self, name: str, state: str) -> str:
        """Declare that a value is what a state becomes."""
        (found,) = (tensor for tensor in self._states if tensor.name == state)
        self._next_states.append(replace(found, name=name))
        return name

    def node(
        self,
        operator: str,
        inputs: Sequence[str],
        output: str,
        attributes: Mapping[str, Attribute] | None = None,
        domain: str = "",
    ) -> str:
        """Add a node with one output; returns the output's name, which is the node's name too."""
        return self.multi_node(operator, inputs, [output], attributes, domain)[0]

    def multi_node(
        self,
        operator: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        attributes: Mapping[str, Attribute] | None = None,
        domain: str = "",
    ) -> list[str]:
        """Add a node with several outputs; an empty name leaves an output out."""
        name = next(output for output in outputs if output)
        node = helper.make_node(operator, list(inputs), list(outputs), name, domain=domain)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in (attributes or {}).items())
        self._nodes.append(node)
        return list(outputs)

    def subgraph(self, name: str, build: Callable[[], str]) -> onnx.GraphProto:
        """A branch of an If node: what `build` adds goes there, and the value that it returns comes out.

        Weights and constants stay those of the whole graph, and its values can be read.
        """
        outside, self._nodes = self._nodes, []
        try:
            output = helper.make_tensor_value_info(build(), TensorProto.FLOAT, None)
            return helper.make_graph(self._nodes, name, [], [output])
        finally:
            self._nodes = outside

    def constant(self, name: str, value: Any, dtype: type[np.generic] = np.float32) -> str:
        """A small constant; asked for twice under one name, it is stored once."""
        return name if name in self._weights else self.weight(name, np.asarray(value, dtype))

    def weight(self, name: str, array: np.ndarray) -> str:
        """Add a weight that is in memory."""
        self.stream_weight(name, array.dtype, array.shape, [array])
        return name

    def stream_weight(
        self, name: str, dtype: np.dtype[Any], shape: Sequence[int], parts: Iterable[np.ndarray]
    ) -> RowRegion | None:
        """Add a weight part by part (in order, flattened); returns where it lies in the data file, None if inline."""
        if name in self._weights:
            raise ValueError(f"the weight {name} was added twice")
        size = int(np.prod(shape)) * dtype.itemsize
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(dtype), dims=shape)
        self._weights[name] = tensor
        if size <= INLINE_BYTES:
            tensor.raw_data = b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
            return None
        offset = -(-self._data.tell() // PAGE_BYTES) * PAGE_BYTES
        self._data.seek(offset)
        for part in parts:
            self._data.write(np.ascontiguousarray(part).data)
        if self._data.tell() != offset + size:
            raise ValueError(f"the weight {name} should take {size} bytes, its parts took {self._data.tell() - offset}")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self._data_path.name), ("offset", offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        row_bytes = size // shape[0] if shape else size
        return RowRegion(file=self._data_path.name, offset=offset, stride=row_bytes)

    def finish(self) -> Graph:
        """Write the graph file; returns its description for the manifest, which leaves states out."""
        graph = helper.make_graph(
            self._nodes,
            self._path.stem,
            [_value_info(tensor) for tensor in (*self._inputs, *self._states)],
            [_value_info(tensor) for tensor in (*self._outputs, *self._next_states)],
            list(self._weights.values()),
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="cabochon")
        self._path.write_bytes(model.SerializeToString())
        return Graph(file=self._path.name, inputs=tuple(self._inputs), outputs=tuple(self._outputs))


def _value_info(tensor: Tensor) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return helper.make_tensor_value_info(tensor.name, dtype, list(tensor.shape))
