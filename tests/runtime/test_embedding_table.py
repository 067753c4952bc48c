from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from cabochon.embedding_table import EmbeddingRows
from cabochon.errors import PackageError
from cabochon.manifest import EmbeddingTable, RowRegion

ROWS, COLUMNS, BLOCK = 7, 64, 16
ROW_SCALE = 2.5
STORAGES = ("float32", "float16", "bfloat16", "int8", "int4", "int2")


def write_table(
    folder: Path, storage: str, scale_storage: str, offset: int, gap: int, seed: int, kind: str = "unsigned"
) -> tuple[EmbeddingTable, np.ndarray]:
    """A table file and the rows that it stands for, computed from its definition."""
    generator = np.random.default_rng(seed)
    is_integer = storage.startswith("int")
    scales = generator.standard_normal((ROWS, COLUMNS // BLOCK)).astype(scale_storage)
    if is_integer:
        bits = int(storage.removeprefix("int"))
        integers = generator.integers(0, 1 << bits, (ROWS, COLUMNS), dtype=np.uint8)
        zero_points = np.full(scales.shape, 1 << (bits - 1), np.uint8)
        if kind == "with zero points":
            zero_points = generator.integers(0, 1 << bits, scales.shape, dtype=np.uint8)
        distances = integers.astype(np.float32) - np.repeat(zero_points, BLOCK, axis=1)
        rows = distances * np.repeat(scales.astype(np.float32), BLOCK, axis=1)
        # The same values as two's complements.
        values = pack(integers ^ np.uint8(1 << (bits - 1)) if kind == "signed" else integers, bits)
        parts = [values, scales.view(np.uint8), *([pack(zero_points, bits)] if kind == "with zero points" else [])]
    else:
        stored = generator.standard_normal((ROWS, COLUMNS)).astype(
            ml_dtypes.bfloat16 if storage == "bfloat16" else storage
        )
        rows = stored.astype(np.float32)
        values = stored.view(np.uint8)
        parts = [values]
    body = np.concatenate([*parts, np.zeros((ROWS, gap), np.uint8)], axis=1)
    (folder / "table.bin").write_bytes(bytes(offset) + body.tobytes())
    region = RowRegion(file="table.bin", offset=offset, stride=body.shape[1])
    table = EmbeddingTable(
        rows=ROWS,
        columns=COLUMNS,
        storage=storage,
        signed=is_integer and kind == "signed",
        values=region,
        block_size=BLOCK if is_integer else 0,
        scales=replace(region, offset=offset + values.shape[1]) if is_integer else None,
        scale_storage=scale_storage if is_integer else None,
        zero_points=(
            replace(region, offset=offset + values.shape[1] + scales[0].nbytes)
            if is_integer and kind == "with zero points"
            else None
        ),
        row_scale=ROW_SCALE,
    )
    return table, rows * np.float32(ROW_SCALE)


def pack(integers: np.ndarray, bits: int) -> np.ndarray:
    """Rows of bytes, the last one filled up with zeros."""
    per_byte = 8 // bits
    filled = np.pad(integers, ((0, 0), (0, -integers.shape[1] % per_byte)))
    return sum(filled[:, place::per_byte] << (place * bits) for place in range(per_byte))


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@given(
    storage=st.sampled_from(STORAGES),
    scale_storage=st.sampled_from(["float32", "float16"]),
    offset=st.integers(0, 5000),
    gap=st.integers(0, 9),
    seed=st.integers(0, 99),
    tokens=st.lists(st.integers(0, ROWS - 1), max_size=10),
    kind=st.sampled_from(["unsigned", "with zero points", "signed"]),
)
def test_rows_equal_their_definition_wherever_they_lie(
    tmp_path: Path,
    storage: str,
    scale_storage: str,
    offset: int,
    gap: int,
    seed: int,
    tokens: list[int],
    kind: str,
) -> None:
    table, rows = write_table(tmp_path, storage, scale_storage, offset, gap, seed, kind)
    found = EmbeddingRows(tmp_path.joinpath, table).look_up(tokens)
    assert found.dtype == np.float32
    assert found.shape == (len(tokens), COLUMNS)
    np.testing.assert_allclose(found, rows[tokens], rtol=1e-6)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not tell how much is resident")
def test_rows_that_were_read_do_not_stay_in_memory(tmp_path: Path) -> None:
    rows, columns = 1 << 14, 4096
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.truncate(rows * columns)
    region = RowRegion(file=path.name, offset=0, stride=columns)
    scales = replace(region, offset=0)
    table = EmbeddingTable(
        storage="int8", rows=rows, columns=columns // 2, values=region, scales=scales, row_scale=1.0,
        block_size=32, scale_storage="float16", zero_points=None, signed=False,
    )  # fmt: skip
    lookup = EmbeddingRows(tmp_path.joinpath, table)
    lookup.look_up([0])
    before = resident_bytes()
    for start in range(0, rows, 64):
        lookup.look_up(range(start, start + 64))
    assert resident_bytes() - before < rows * columns / 4


def test_a_file_that_shrinks_while_it_is_in_use_is_refused(tmp_path: Path) -> None:
    table, _ = write_table(tmp_path, "int4", "float16", 0, 0, 1)
    lookup = EmbeddingRows(tmp_path.joinpath, table)
    os.truncate(tmp_path / "table.bin", 1)
    with refused(PackageError, "table.bin", "was cut"):
        lookup.look_up([ROWS - 1])


@pytest.mark.parametrize("token", [-1, ROWS, 1 << 40])
def test_a_token_outside_the_table_is_refused(tmp_path: Path, token: int) -> None:
    table, _ = write_table(tmp_path, "int4", "float16", 0, 0, 1)
    with pytest.raises(ValueError, match=str(token)):
        EmbeddingRows(tmp_path.joinpath, table).look_up([0, token])


@pytest.mark.parametrize("storage", STORAGES)
def test_a_file_that_is_too_short_for_its_rows_is_refused(tmp_path: Path, storage: str) -> None:
    table, _ = write_table(tmp_path, storage, "float16", 3, 0, 1)
    path = tmp_path / "table.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with refused(PackageError, "table.bin", "too short"):
        EmbeddingRows(tmp_path.joinpath, table)


def test_rows_that_would_overlap_or_lie_far_outside_are_refused(tmp_path: Path) -> None:
    table, _ = write_table(tmp_path, "float32", "float16", 0, 0, 1)
    values = table.values
    for region in (
        replace(values, stride=COLUMNS * 4 - 1),
        replace(values, offset=1 << 80),
        replace(values, stride=1 << 80),
    ):
        with refused(PackageError, "too short"):
            EmbeddingRows(tmp_path.joinpath, replace(table, values=region))
