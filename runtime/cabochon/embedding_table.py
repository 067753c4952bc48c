"""Embedding tables that stay on disk: a row is read, dequantized and scaled when its token comes up.

Gemma 4's per-layer embeddings are half of the model, yet a token needs one row of them. The file is mapped into memory,
so only the pages of the rows that were asked for are ever resident, and the system may drop them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cabochon.arrays import Float32Array, widen_bfloat16
from cabochon.errors import PackageError
from cabochon.manifest import TABLE_STORAGE_BITS, EmbeddingTable, RowRegion


class EmbeddingRows:
    """Row access to one table of a package."""

    def __init__(self, folder: Path, table: EmbeddingTable) -> None:
        self.table = table
        self._values = _map_rows(folder, table.values, table.rows, _value_bytes(table))
        self._scales = None
        if table.scales is not None:
            scale_bytes = table.columns // table.block_size * np.dtype(table.scale_storage).itemsize
            self._scales = _map_rows(folder, table.scales, table.rows, scale_bytes)

    def look_up(self, tokens: Sequence[int]) -> Float32Array:
        """Scaled rows of some tokens: float32 [len(tokens), columns]."""
        result = np.empty((len(tokens), self.table.columns), np.float32)
        for index, token in enumerate(tokens):
            if not 0 <= token < self.table.rows:
                raise ValueError(f"token {token} is outside the table of {self.table.rows} rows")
            self._read_row(token, result[index])
        return result

    def _read_row(self, token: int, out: Float32Array) -> None:
        table = self.table
        packed = self._values[token]
        if table.storage in ("float32", "float16"):
            out[:] = packed.view(table.storage)
        elif table.storage == "bfloat16":
            out[:] = widen_bfloat16(packed.view(np.uint16))
        else:
            self._dequantize_row(token, packed, out)
        np.multiply(out, np.float32(table.row_scale), out=out)

    def _dequantize_row(self, token: int, packed: npt.NDArray[np.uint8], out: Float32Array) -> None:
        table = self.table
        assert self._scales is not None  # EmbeddingTable refuses integer storage without scales
        bits = TABLE_STORAGE_BITS[table.storage]
        per_byte, zero_point = 8 // bits, float(1 << (bits - 1))
        for place in range(per_byte):
            values = packed if per_byte == 1 else packed >> (place * bits) & ((1 << bits) - 1)
            np.subtract(values, zero_point, out=out[place::per_byte])
        blocks = out.reshape(-1, table.block_size)
        np.multiply(blocks, self._scales[token].view(table.scale_storage)[:, None], out=blocks)


def _value_bytes(table: EmbeddingTable) -> int:
    """Bytes of one row's values."""
    return table.columns * TABLE_STORAGE_BITS[table.storage] // 8


def _map_rows(folder: Path, region: RowRegion, rows: int, row_bytes: int) -> npt.NDArray[np.uint8]:
    """The rows of a region as uint8 [rows, row_bytes], mapped, not read."""
    path = folder / region.file
    end = region.offset + (rows - 1) * region.stride + row_bytes
    if row_bytes > region.stride or end > path.stat().st_size:
        raise PackageError(f"{path} is too short for its {rows} embedding rows: convert the checkpoint again.")
    mapped = np.memmap(path, np.uint8, "r")
    return np.lib.stride_tricks.as_strided(
        mapped[region.offset :], (rows, row_bytes), (region.stride, 1), writeable=False
    )
