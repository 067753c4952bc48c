"""Files of keys and values, and what becomes of those that are none."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import refused

from cabochon.backend import CacheRows
from cabochon.cache_file import read_cache_file, write_cache_file
from cabochon.errors import PackageError

ROWS = CacheRows(3, tuple(np.arange(12, dtype=np.float32).reshape(2, 3, 2) + number for number in range(4)))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "rows.npz"
    write_cache_file(path, "mine", [5, 6, 7], ROWS)
    return path


def test_what_was_written_is_read(written: Path) -> None:
    tokens, rows, _ = read_cache_file(written, "mine")
    assert tokens == [5, 6, 7]
    assert rows.end == ROWS.end
    assert len(rows.rows) == 4
    assert all(np.array_equal(one, two) for one, two in zip(rows.rows, ROWS.rows, strict=True))
    assert [path.name for path in written.parent.iterdir()] == ["rows.npz"]


def test_a_file_of_another_model_is_refused(written: Path) -> None:
    with refused(PackageError, "another model"):
        read_cache_file(written, "yours")
    with refused(PackageError, "keys and values"):
        read_cache_file(written.with_name("missing.npz"), "mine")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_refused_or_give_what_was_written(written: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(written.read_bytes())
    kind = data.draw(st.sampled_from(["cut", "changed", "other"]))
    if kind == "cut":
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    elif kind == "changed":
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
            content[place] ^= data.draw(st.integers(1, 255))
    else:
        content = bytearray(data.draw(st.binary(max_size=300)))
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(content)
    try:
        tokens, rows, _ = read_cache_file(damaged, "mine")
    except PackageError:
        return
    # A changed date, say: each array has a checksum.
    assert tokens == [5, 6, 7]
    assert all(np.array_equal(one, two) for one, two in zip(rows.rows, ROWS.rows, strict=False))


def test_no_code_is_run_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "hostile.npz"
    np.savez(
        path,
        model=np.array("mine"),
        about=np.array(""),
        tokens=np.array([1, 2]),
        rows_0=np.array([print], dtype=object),
    )
    with refused(PackageError, "keys and values"):
        read_cache_file(path, "mine")
    np.savez(path, model=np.array("mine"), about=np.array(""), tokens=np.array(["a"]))
    with refused(PackageError, "tokens"):
        read_cache_file(path, "mine")


def test_a_file_that_is_compressed_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez_compressed(path, model=np.array("mine"), about=np.array(""), tokens=np.array([5]), rows_0=np.zeros(10**6))
    assert path.stat().st_size < 10_000
    with refused(PackageError, "compressed"):
        read_cache_file(path, "mine")


def test_tokens_that_take_no_room_in_the_file_are_no_tokens(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, model=np.array("mine"), about=np.array(""))
    with zipfile.ZipFile(path, "a") as file, file.open("tokens.npy", "w") as tokens:
        np.lib.format.write_array_header_1_0(tokens, {"descr": "<U0", "fortran_order": False, "shape": (10**12,)})
    assert path.stat().st_size < 10_000
    with refused(PackageError, "no list of tokens"):
        read_cache_file(path, "mine")
