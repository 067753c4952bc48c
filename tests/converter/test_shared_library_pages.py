from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from cabochon_convert.shared_library_pages import AARCH64, LibraryError, check_wheel, read_shared_library

X86_64 = 62


def library(alignments: list[int], machine: int = AARCH64, kind: int = 1) -> bytes:
    """An ELF file of a header and program headers only."""
    head = struct.pack(
        "<4sBB10xHHIQQQIHHH", b"\x7fELF", 2, 1, 3, machine, 1, 0, 64, 0, 0, 64, 56, len(alignments)
    ).ljust(64, b"\0")
    return head + b"".join(struct.pack("<IIQQQQQQ", kind, 5, 0, 0, 0, 0, 0, each) for each in alignments)


def wheel(folder: Path, content: bytes, name: str = "a/b.so") -> Path:
    path = folder / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
        archive.writestr("a/__init__.py", "")
    return path


@pytest.mark.parametrize("alignments", [[0x10000], [0x4000, 0x10000]])
def test_libraries_for_large_pages_are_counted(tmp_path: Path, alignments: list[int]) -> None:
    assert check_wheel(wheel(tmp_path, library(alignments)), "aarch64") == 1


@pytest.mark.parametrize("name", ["a/b.so", "a/b.so.1.2", "a.data/scripts/b"])
def test_a_library_for_small_pages_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with refused(LibraryError, name):
        check_wheel(wheel(tmp_path, library([0x10000, 0x1000]), name), "aarch64")


def test_a_library_for_another_machine_is_refused(tmp_path: Path) -> None:
    with refused(LibraryError, "machine 62"):
        check_wheel(wheel(tmp_path, library([0x10000], X86_64)), "aarch64")


def test_segments_that_are_not_loaded_do_not_count(tmp_path: Path) -> None:
    with refused(LibraryError, "aligned to 0 bytes"):
        check_wheel(wheel(tmp_path, library([0x10000], kind=2)), "aarch64")


def test_what_is_no_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a-1-py3-none-any.whl").write_bytes(b"PK")
    with refused(LibraryError, "wheel"):
        check_wheel(tmp_path / "a-1-py3-none-any.whl", "aarch64")


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda rest: b"\x7fELF\x02\x01" + rest))
def test_whatever_a_file_holds_it_is_read_or_refused(content: bytes) -> None:
    try:
        found = read_shared_library(content)
    except LibraryError:
        assert content[:4] == b"\x7fELF"
    else:
        assert (found is None) == (content[:4] != b"\x7fELF")


@given(st.integers(0, 64 + 56 * 2 - 1))
def test_a_file_that_ends_in_its_headers_is_refused(length: int) -> None:
    content = library([0x4000, 0x4000])[:length]
    if content[:4] == b"\x7fELF":
        with refused(LibraryError, "choose another version"):
            read_shared_library(content)
