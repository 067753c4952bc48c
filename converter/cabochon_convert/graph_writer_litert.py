"""Small LiteRT graphs, operator by operator, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from cabochon_convert.flatbuffer_litert import PLACE, pack_model


class GraphWriter:
    """A flatbuffer, operator by operator; each signature has a subgraph of its own."""

    def __init__(self) -> None:
        self._model = schema.ModelT()
        self._model.version = 3
        self._model.operatorCodes = []
        self._model.buffers = [schema.BufferT()]
        self._model.subgraphs, self._model.signatureDefs = [], []
        self._subgraph = _empty_subgraph()
        self._buffers: dict[bytes, int] = {}

    def tensor(self, name: str, shape: Sequence[int], kind: int, buffer: int = 0) -> int:
        """A new tensor; returns its number."""
        tensor = schema.TensorT()
        tensor.name, tensor.shape = name.encode(), np.array(shape, np.int32)
        tensor.type, tensor.buffer = kind, buffer
        self._subgraph.tensors.append(tensor)
        return len(self._subgraph.tensors) - 1

    def constant(self, name: str, values: np.ndarray) -> int:
        """A tensor of given values; returns its number. The same values are stored once."""
        content = values.tobytes()
        if content not in self._buffers:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(content, np.uint8)
            self._model.buffers.append(buffer)
            self._buffers[content] = len(self._model.buffers) - 1
        kind = schema.TensorType.INT32 if values.dtype == np.int32 else schema.TensorType.FLOAT32
        return self.tensor(name, values.shape, kind, self._buffers[content])

    def operator(
        self, code: int, inputs: Sequence[int], output: int | Sequence[int], options: tuple[int, Any] | None = None
    ) -> None:
        """A node with one output, or several."""
        operator = schema.OperatorT()
        operator.opcodeIndex = self._code(code)
        operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array(np.atleast_1d(output), np.int32)
        if options is not None:
            operator.builtinOptionsType, operator.builtinOptions = options
        self._subgraph.operators.append(operator)

    def place(self, output: int, number: int = 0) -> None:
        """The tensor of a matrix that `fill_places` gets; subgraphs share those of one number."""
        operator = schema.OperatorT()
        operator.opcodeIndex = self._code(schema.BuiltinOperator.CUSTOM, PLACE)
        operator.inputs, operator.outputs = np.zeros(0, np.int32), np.array([output], np.int32)
        operator.customOptions = np.frombuffer(number.to_bytes(4, "little"), np.uint8)
        self._subgraph.operators.append(operator)

    def signature(self, name: str, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> None:
        """The operators since the last signature are one; what follows belongs to the next."""
        self._subgraph.inputs = np.array(list(inputs.values()), np.int32)
        self._subgraph.outputs = np.array(list(outputs.values()), np.int32)
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = name.encode(), len(self._model.subgraphs)
        signature.inputs, signature.outputs = _tensor_maps(inputs), _tensor_maps(outputs)
        self._model.subgraphs.append(self._subgraph)
        self._model.signatureDefs.append(signature)
        self._subgraph = _empty_subgraph()

    def finish(self, name: str, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> bytes:
        """The bytes of a graph, of which this is the last signature."""
        self.signature(name, inputs, outputs)
        return pack_model(self._model)

    def _code(self, builtin: int, custom: str = "") -> int:
        code = schema.OperatorCodeT()
        code.builtinCode, code.version = builtin, 1
        # The old field holds a byte.
        code.deprecatedBuiltinCode = min(builtin, 127)
        code.customCode = custom.encode() if custom else None
        self._model.operatorCodes.append(code)
        return len(self._model.operatorCodes) - 1


def _empty_subgraph() -> Any:
    subgraph = schema.SubGraphT()
    subgraph.tensors, subgraph.operators = [], []
    return subgraph


def _tensor_maps(tensors: Mapping[str, int]) -> list[Any]:
    maps = []
    for name, index in tensors.items():
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name.encode(), index
        maps.append(entry)
    return maps
