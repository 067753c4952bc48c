"""Opening a package folder: read its manifest, make sure that every file is the one that the converter wrote."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cabochon.errors import PackageError
from cabochon.manifest import FileRecord, Manifest
from cabochon.manifest_file import read_manifest

CHUNK_BYTES = 1 << 20

Progress = Callable[[int], None]
"""Called with the number of bytes that were just worked through."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package folder whose manifest was read and whose files were checked."""

    folder: Path
    manifest: Manifest

    def path(self, relative: str) -> Path:
        """Where a file of the manifest lies."""
        return self.folder / relative

    @property
    def size(self) -> int:
        """Bytes of all files together, without the manifest."""
        return self.manifest.size


def open_package(folder: str | os.PathLike[str], *, check_again: bool = False) -> Package:
    """Open a package, refusing it unless every file has the size and SHA-256 that the manifest states.

    Hashing gigabytes at every start would double the load time on a Raspberry Pi, so a file that passed once is not
    hashed again until its size, inode or modification time changes.

    Args:
        folder: the package.
        check_again: hash every file whatever was remembered.

    Raises:
        PackageError: the folder, the manifest or a file is missing, unreadable, unsafe or altered.
    """
    path = Path(folder)
    try:
        manifest = read_manifest(path)
        remembered = set() if check_again else _remembered_files()
        passed = [_check_file(path, record, remembered) for record in manifest.files]
    except OSError as error:
        raise PackageError(f"{error.filename or path} cannot be read ({error.strerror}).") from None
    if not remembered.issuperset(passed):
        _remember_files(passed)
    return Package(path, manifest)


def hash_file(path: Path, progress: Progress | None = None) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    for chunk in file_chunks(path):
        digest.update(chunk)
        if progress:
            progress(len(chunk))
    return digest.hexdigest()


def file_chunks(path: Path) -> Iterator[memoryview]:
    """A file's bytes, a megabyte at a time, each valid until the next is asked for."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb") as file:
        while count := file.readinto(buffer):
            yield buffer[:count]


def replace_text(path: Path, text: str) -> None:
    """Write a text file whole: whoever reads meanwhile finds the old one or the new one."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole: whoever reads meanwhile finds the old one or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _check_file(folder: Path, record: FileRecord, remembered: set[str]) -> str:
    """Check one file; returns the line under which it may be remembered."""
    path = folder / record.path
    if not path.is_file():
        raise PackageError(f"{path} is missing, but the manifest lists it: copy the package again.")
    if folder.resolve() not in path.resolve().parents:
        raise PackageError(f"{path} is a link that leaves the package folder: copy the file itself into the package.")
    status = path.stat()
    if status.st_size != record.size:
        raise PackageError(
            f"{path} is {status.st_size} bytes long, but the manifest says {record.size}: copy the package again."
        )
    line = f"{record.sha256} {status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    if line not in remembered and hash_file(path) != record.sha256:
        raise PackageError(f"{path} was altered (its SHA-256 is not the manifest's): copy the package again.")
    return line


def cache_folder() -> Path:
    """Where what only saves time is kept; RuntimeError where the user has no home."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "cabochon"


def _memory_file() -> Path:
    return cache_folder() / "checked-files.json"


def _remembered_files() -> set[str]:
    """Lines of files that passed before; empty when there is no usable memory, which only costs time."""
    try:
        lines = json.loads(_memory_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError, RecursionError):
        return set()
    return {line for line in lines if isinstance(line, str)} if isinstance(lines, list) else set()


def _remember_files(lines: list[str], keep: int = 500) -> None:
    """Remember these lines, and others as far as there is room; a read-only home directory only costs time."""
    try:
        path = _memory_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        others = sorted(_remembered_files().difference(lines))
        replace_text(path, json.dumps([*lines, *others][:keep], indent=0))
    except (OSError, RuntimeError):
        pass
