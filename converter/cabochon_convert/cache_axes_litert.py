"""Caches of any length in a LiteRT graph.

A graph is exported with a length that no other size is, so that all axes which have it are known to be positions of
caches. They get the length that is wanted, and are noted in the file for whoever wants another; nothing else in such a
graph knows the length, so that LiteRT can resize the inputs of its signatures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from cabochon_convert.flatbuffer_litert import pack_model

STAND_IN = 9973
"""The length that graphs are exported with: a prime, so that it is no product of other sizes."""
METADATA = b"cabochon.cache_axes"
"""int32 [axes, 3]: subgraph, tensor and axis."""
_LONGEST_SHAPE = 64
"""Bytes of a constant that can be the shape of something."""


def set_cache_length(graph: bytes, length: int) -> bytes:
    """The graph with caches of so many positions instead of `STAND_IN`, and with a note of their axes.

    Raises:
        ValueError: a constant of the graph depends on the length, so that inputs could not be resized.
    """
    model = schema.ModelT.InitFromPackedBuf(bytearray(graph), 0)
    axes = [
        (number, index, axis)
        for number, subgraph in enumerate(model.subgraphs)
        for index, tensor in enumerate(subgraph.tensors)
        for axis, size in enumerate(() if tensor.shape is None else tensor.shape)
        if size == STAND_IN
    ]
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            if _depends_on_length(model, tensor):
                raise ValueError(f"the constant {tensor.name.decode()} depends on the length of the caches")
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(np.array(axes, np.int32).tobytes(), np.uint8)
    model.buffers.append(buffer)
    note = schema.MetadataT()
    note.name, note.buffer = METADATA, len(model.buffers) - 1
    model.metadata = [*(model.metadata or []), note]
    change_cache_length(model, length)
    return pack_model(model)


def change_cache_length(model: Any, length: int) -> None:
    """Give all caches of a graph another length. Args: model: the schema's object of it; without a note it stays."""
    for note in model.metadata or []:
        if note.name == METADATA:
            axes = np.frombuffer(bytes(bytearray(model.buffers[note.buffer].data)), np.int32).reshape(-1, 3)
            for number, index, axis in axes.tolist():
                tensor = model.subgraphs[number].tensors[index]
                tensor.shape = np.array(tensor.shape, np.int32)
                tensor.shape[axis] = length


def _depends_on_length(model: Any, tensor: Any) -> bool:
    """Whether a constant is as long as the caches, or a shape that names their length."""
    data = model.buffers[tensor.buffer].data
    if data is None or not len(data):
        return False
    if tensor.type == schema.TensorType.INT32 and len(data) <= _LONGEST_SHAPE:
        return bool((np.frombuffer(bytes(bytearray(data)), np.int32) == STAND_IN).any())
    return tensor.shape is not None and STAND_IN in tensor.shape
