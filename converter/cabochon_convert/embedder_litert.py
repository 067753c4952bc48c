"""Embedding tables as LiteRT graphs of a lookup and a factor; the runtime reads their rows without the graph.

token_ids   int32 [1, 1]
embeddings  float32 [1, 1, columns], or [1, 1, layers, width] of per-layer embeddings; scaled
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from cabochon.manifest import EmbeddingTable
from cabochon_convert.flatbuffer_litert import FilledMatrix, StoredMatrix, fill_places
from cabochon_convert.graph_writer_litert import GraphWriter

SIGNATURE = "embedder"


def build_embedder(table: StoredMatrix, scale: float, shape: Sequence[int], path: Path) -> EmbeddingTable:
    """Write a table and its lookup to a file.

    Args:
        scale: factor of every row.
        shape: of the embeddings of one token; its product is the table's columns.
    """
    (filled,) = fill_places(_lookup_graph(table, scale, shape), [table], path)
    return table_of_matrix(table, filled, scale)


def table_of_matrix(matrix: StoredMatrix, filled: FilledMatrix, scale: float) -> EmbeddingTable:
    """How the rows of a matrix in a file are read as embeddings."""
    is_integer = matrix.bits < 32
    return EmbeddingTable(
        rows=matrix.rows,
        columns=matrix.columns,
        storage=f"int{matrix.bits}" if is_integer else "float32",
        signed=is_integer,
        values=filled.values,
        block_size=(matrix.block_size or matrix.columns) if is_integer else 0,
        scales=filled.scales,
        scale_storage=filled.scale_storage,
        zero_points=None,
        row_scale=scale,
    )


def _lookup_graph(table: StoredMatrix, scale: float, shape: Sequence[int]) -> bytes:
    graph = GraphWriter()
    tokens = graph.tensor("token_ids", [1, 1], schema.TensorType.INT32)
    # LiteRT-LM marks places of sounds and images with negative tokens: they are looked up like the first one.
    zero = graph.constant("zero", np.array([[0]], np.int32))
    real = graph.tensor("real", [1, 1], schema.TensorType.INT32)
    limits = (schema.BuiltinOptions.MaximumMinimumOptions, schema.MaximumMinimumOptionsT())
    graph.operator(schema.BuiltinOperator.MAXIMUM, [tokens, zero], real, limits)
    flat = graph.constant("flat", np.array([1], np.int32))
    token = graph.tensor("token", [1], schema.TensorType.INT32)
    graph.operator(schema.BuiltinOperator.RESHAPE, [real, flat], token)
    matrix = graph.tensor("table", [table.rows, table.columns], schema.TensorType.FLOAT32)
    graph.place(matrix)
    row = graph.tensor("row", [1, table.columns], schema.TensorType.FLOAT32)
    graph.operator(schema.BuiltinOperator.EMBEDDING_LOOKUP, [token, matrix], row)
    factor = graph.constant("scale", np.array(scale, np.float32))
    scaled = graph.tensor("scaled", [1, table.columns], schema.TensorType.FLOAT32)
    options = (schema.BuiltinOptions.MulOptions, schema.MulOptionsT())
    graph.operator(schema.BuiltinOperator.MUL, [row, factor], scaled, options)
    full_shape = [1, 1, *shape]
    target = graph.constant("shape", np.array(full_shape, np.int32))
    embeddings = graph.tensor("embeddings", full_shape, schema.TensorType.FLOAT32)
    graph.operator(schema.BuiltinOperator.RESHAPE, [scaled, target], embeddings)
    return graph.finish(SIGNATURE, {"token_ids": tokens}, {"embeddings": embeddings})
