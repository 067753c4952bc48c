"""Embedding tables that stay on disk: a row is read, dequantized and scaled when its token comes up.

Gemma 4's per-layer embeddings are half of the model, yet a token needs one row of them. Rows are read from the file,
not mapped: the system maps what lies around a row as well, until most of a table counts as this process's memory.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cabochon.arrays import Float32Array, widen_bfloat16
from cabochon.errors import PackageError
from cabochon.manifest import TABLE_STORAGE_BITS, EmbeddingTable, RowRegion

SIGN_BITS = {2: 0xAA, 4: 0x88, 8: 0x80}
"""In a byte, of integers of so many bits."""
_ROWS_AT_ONCE = 32
"""They and what is computed from them stay in a processor's cache."""


class EmbeddingRows:
    """Row access to one table of a package."""

    def __init__(self, find: Callable[[str], Path], table: EmbeddingTable) -> None:
        """Args: find: tells where a file of the package can be opened."""
        self.table = table
        self._values = _Region(find, table.values, table.rows, _value_bytes(table))
        self._scales = self._zero_points = None
        if table.scales is not None:
            scale_bytes = table.columns // table.block_size * np.dtype(table.scale_storage).itemsize
            self._scales = _Region(find, table.scales, table.rows, scale_bytes)
        if table.zero_points is not None:
            zero_bytes = -(-table.columns // table.block_size * TABLE_STORAGE_BITS[table.storage] // 8)
            self._zero_points = _Region(find, table.zero_points, table.rows, zero_bytes)

    def look_up(self, tokens: Sequence[int]) -> Float32Array:
        """Scaled rows of some tokens: float32 [len(tokens), columns]."""
        for token in tokens:
            if not 0 <= token < self.table.rows:
                raise ValueError(f"token {token} is outside the table of {self.table.rows} rows")
        result = np.empty((len(tokens), self.table.columns), np.float32)
        for start in range(0, len(tokens), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            self._read_rows(tokens[rows], result[rows])
        return result

    def _read_rows(self, tokens: Sequence[int], out: Float32Array) -> None:
        table = self.table
        packed = self._values.read(tokens)
        if table.storage in ("float32", "float16"):
            np.multiply(packed.view(table.storage), np.float32(table.row_scale), out=out)
        elif table.storage == "bfloat16":
            np.multiply(widen_bfloat16(packed.view(np.uint16)), np.float32(table.row_scale), out=out)
        else:
            self._dequantize_rows(tokens, packed, out)

    def _dequantize_rows(self, tokens: Sequence[int], packed: npt.NDArray[np.uint8], out: Float32Array) -> None:
        table = self.table
        # EmbeddingTable refuses integer storage without scales.
        assert self._scales is not None
        assert table.scale_storage is not None
        bits = TABLE_STORAGE_BITS[table.storage]
        # With zero points, which are stored like the values, the middle that is subtracted from both is nothing.
        np.take(_numbers_of_bytes(bits, table.signed), packed, axis=0, out=out.reshape(*packed.shape, -1), mode="clip")
        blocks = out.reshape(len(tokens), -1, table.block_size)
        if self._zero_points is not None:
            zero_points = _numbers_of_bytes(bits, table.signed)[self._zero_points.read(tokens)]
            # The last byte may have room for more.
            np.subtract(blocks, zero_points.reshape(len(tokens), -1)[:, : blocks.shape[1], None], out=blocks)
        np.multiply(blocks, self._scales.read(tokens).view(table.scale_storage)[..., None], out=blocks)
        # Not both at once: every bit is to be as in the reference.
        np.multiply(out, np.float32(table.row_scale), out=out)


@functools.cache
def _numbers_of_bytes(bits: int, signed: bool) -> Float32Array:
    """Integers that share a byte, less the middle of unsigned ones: [256, integers a byte], lowest bits first."""
    codes = np.arange(256, dtype=np.uint8)[:, None]
    if signed:
        # Turning the sign bit around adds 2 ** (bits - 1) to a two's complement.
        codes = codes ^ np.uint8(SIGN_BITS[bits])
    places = np.arange(0, 8, bits, dtype=np.uint8)
    return (codes >> places & (1 << bits) - 1).astype(np.float32) - np.float32(1 << bits - 1)


def _value_bytes(table: EmbeddingTable) -> int:
    """Bytes of one row's values."""
    return table.columns * TABLE_STORAGE_BITS[table.storage] // 8


class _Region:
    """Rows of bytes in a file."""

    def __init__(self, find: Callable[[str], Path], region: RowRegion, rows: int, row_bytes: int) -> None:
        self._path = find(region.file)
        self._region = region
        self._row_bytes = row_bytes
        end = region.offset + (rows - 1) * region.stride + row_bytes
        if row_bytes > region.stride or end > self._path.stat().st_size:
            raise PackageError(
                f"{self._path} is too short for its {rows} embedding rows: convert the checkpoint again."
            )
        # Without a buffer, which would read more than the row.
        self._descriptor = os.open(self._path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._descriptor)
        self._lock = threading.Lock()

    def read(self, rows: Sequence[int]) -> npt.NDArray[np.uint8]:
        """uint8 [len(rows), row_bytes]"""
        contents = np.empty((len(rows), self._row_bytes), np.uint8)
        with self._lock:
            for index, row in enumerate(rows):
                try:
                    os.lseek(self._descriptor, self._region.offset + row * self._region.stride, os.SEEK_SET)
                    content = os.read(self._descriptor, self._row_bytes)
                except OSError as error:
                    raise PackageError(
                        f"{self._path} cannot be read ({error.strerror}): check the disk, and copy the package again."
                    ) from None
                if len(content) != self._row_bytes:
                    raise PackageError(f"{self._path} was cut while it was in use: convert the checkpoint again.")
                contents[index] = np.frombuffer(content, np.uint8)
        return contents
