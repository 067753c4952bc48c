"""Embedding tables as side files whose rows the runtime reads one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from cabochon.manifest import TABLE_STORAGE_BITS, EmbeddingTable, RowRegion
from cabochon_convert.checkpoint import Checkpoint, CheckpointError
from cabochon_convert.linear_onnx import StoredMatrix
from cabochon_convert.quantize import Precision, quantize_matrix
from cabochon_convert.trained_integers import TrainedIntegers, to_blocks

# Scales of a side file are half precision: their rounding error is far below that of the values they scale.
SCALE_TYPE = np.float16
SHORTEST_BLOCK = 16
STORED_AS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def write_table(
    checkpoint: Checkpoint,
    tensor: str,
    shape: tuple[int, int],
    precision: Precision,
    row_scale: float,
    path: Path,
    integers: TrainedIntegers | None = None,
) -> EmbeddingTable:
    """Write a table to a file of its own; a row's scales follow its values, so that a lookup touches one place.

    Args:
        shape: [rows, columns] of the table.
        row_scale: factor for every looked-up row, applied by the runtime.
        integers: where the table comes from if its precision is that of training.
    """
    rows, columns = shape
    block_size = math.gcd(columns, precision.block_size)
    if precision.is_integer and precision.algorithm != "as-trained" and block_size >= SHORTEST_BLOCK:
        # A row's last block cannot be filled up: where blocks do not fill the rows, shorter ones do.
        precision = replace(precision, block_size=block_size)
    scale_type: type[np.float16] | type[np.float32] = SCALE_TYPE
    if precision.is_integer:
        # Rows of a side file have no zero points.
        precision = replace(precision, symmetric=True)
        if precision.algorithm == "as-trained" and integers is not None:
            parts, scale_type = _trained_rows(integers, tensor, shape, precision), np.float32
        else:
            parts = _quantized_rows(checkpoint, tensor, shape, precision)
        storage, value_bytes = f"int{precision.bits}", columns * precision.bits // 8
    elif precision.bits == 16:
        parts = checkpoint.read_stored_rows(tensor, shape)
        record = checkpoint.record(tensor)
        storage, value_bytes = STORED_AS[record.storage], record.row_bytes
    else:
        parts = (part.view(np.uint8) for part in checkpoint.read_rows(tensor, shape))
        storage, value_bytes = "float32", columns * 4
    scale_bytes = columns // precision.block_size * np.dtype(scale_type).itemsize if precision.is_integer else 0
    with path.open("wb") as file:
        for part in parts:
            file.write(np.ascontiguousarray(part).data)
    stride = value_bytes + scale_bytes
    return EmbeddingTable(
        rows=rows,
        columns=columns,
        storage=storage,
        signed=False,
        values=RowRegion(file=path.name, offset=0, stride=stride),
        block_size=precision.block_size,
        scales=RowRegion(file=path.name, offset=value_bytes, stride=stride) if scale_bytes else None,
        scale_storage=np.dtype(scale_type).name if scale_bytes else None,
        zero_points=None,
        row_scale=row_scale,
    )


def stored_precision(table: EmbeddingTable, precision: Precision) -> Precision:
    """What a precision that was asked for became in a table."""
    if table.scale_storage is None:
        return Precision(TABLE_STORAGE_BITS[table.storage])
    scale_bits = 8 * np.dtype(table.scale_storage).itemsize if precision.algorithm != "as-trained" else 32
    symmetric = table.zero_points is None
    return replace(precision, block_size=table.block_size, scale_bits=scale_bits, symmetric=symmetric)


def table_of_head(head: StoredMatrix, rows: int, columns: int, row_scale: float) -> EmbeddingTable | None:
    """The decoder's own output matrix as embedding table: tied weights need to be stored once only.

    None where the matrix lies inside the graph file or its last block is padded.
    """
    precision = head.precision
    if head.values is None or (precision.is_integer and (head.scales is None or columns % precision.block_size)):
        return None
    if not precision.symmetric and head.zero_points is None:
        return None
    return EmbeddingTable(
        rows=rows,
        columns=columns,
        storage=f"int{precision.bits}" if precision.is_integer else "float32",
        signed=False,
        values=head.values,
        block_size=precision.block_size,
        scales=head.scales,
        scale_storage=f"float{precision.scale_bits}" if precision.is_integer else None,
        zero_points=head.zero_points,
        row_scale=row_scale,
    )


def _quantized_rows(
    checkpoint: Checkpoint, tensor: str, shape: tuple[int, int], precision: Precision
) -> Iterator[np.ndarray]:
    """uint8 [some rows, value bytes + scale bytes]"""
    _refuse_unfilled_blocks(tensor, shape, precision)
    for part in checkpoint.read_rows(tensor, shape):
        quantized = quantize_matrix(part, precision)
        values = quantized.values.reshape(len(part), -1)
        if np.abs(quantized.scales).max() > np.finfo(SCALE_TYPE).max:
            raise CheckpointError(f"the tensor {tensor} holds values too large for half-precision scales.")
        yield np.concatenate([values, quantized.scales.astype(SCALE_TYPE).view(np.uint8)], axis=1)


def _trained_rows(
    integers: TrainedIntegers, tensor: str, shape: tuple[int, int], precision: Precision
) -> Iterator[np.ndarray]:
    """uint8 [some rows, value bytes + scale bytes]; scales keep the precision that they were trained with."""
    _refuse_unfilled_blocks(tensor, shape, precision)
    for part in integers.rows(tensor, shape, range(shape[0])):
        carried = to_blocks(part, precision)
        scales = np.ascontiguousarray(carried.scales)
        yield np.concatenate([carried.values.reshape(len(scales), -1), scales.view(np.uint8)], axis=1)


def _refuse_unfilled_blocks(tensor: str, shape: tuple[int, int], precision: Precision) -> None:
    if shape[1] % precision.block_size:
        raise CheckpointError(
            f"the rows of {tensor} hold {shape[1]} values, which blocks of {precision.block_size} do not fill: "
            "choose the recipe float."
        )
