from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from cabochon import freed_memory
from cabochon.freed_memory import drop_file_pages, return_freed_memory
from cabochon.machine import resident_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a process has in memory")

MEBIBYTE = 1 << 20
SIZE = 64 * MEBIBYTE

FREE_MUCH = """
from cabochon.freed_memory import return_freed_memory
from cabochon.machine import resident_memory
# Pieces that are too small to be mapped one by one; the last one holds the heap's end where it is.
pieces = [bytes([1]) * 4096 for _ in range(16384)]
kept = bytes([1]) * 4096
del pieces
before = resident_memory().now
return_freed_memory()
print(before - resident_memory().now)
"""


def test_what_was_freed_is_returned_to_the_system() -> None:
    outcome = subprocess.run([sys.executable, "-c", FREE_MUCH], check=True, capture_output=True, text=True)
    assert int(outcome.stdout) > 32 * MEBIBYTE


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a file"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


def resident() -> int:
    now = resident_memory().now
    assert now is not None
    return now


def test_pages_of_a_file_leave_the_process_and_come_back_when_they_are_read(file: Path) -> None:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[::4096]) == 0
        before = resident()
        drop_file_pages(file)
        assert before - resident() > SIZE // 2
        assert mapped[-256:] == bytes(range(256))


def test_what_was_written_to_a_mapping_stays(file: Path) -> None:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[:5] = b"mine!"
        drop_file_pages(file)
        assert mapped[:5] == b"mine!"


def test_a_file_that_is_not_mapped_is_left_alone(file: Path, tmp_path: Path) -> None:
    drop_file_pages(file)
    drop_file_pages(tmp_path / "missing")


def test_systems_without_these_functions_keep_their_memory(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr(freed_memory, "_find_function", {}.get)
    return_freed_memory()
    drop_file_pages(file)
