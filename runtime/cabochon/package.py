"""Opening a package folder: read its manifest, make sure that every file is the one that the converter wrote."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cabochon.errors import PackageError, named_file
from cabochon.held_files import HeldFiles
from cabochon.manifest import MANIFEST_NAME, FileRecord, Manifest
from cabochon.manifest_file import read_manifest
from cabochon.whole_file import replace_text

CHUNK_BYTES = 1 << 20
_ATTEMPTS = 3
"""Packages that may take one another's place while one is being opened."""

Progress = Callable[[int], None]
"""Called with the number of bytes that were just worked through."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package folder whose manifest was read and whose files were checked."""

    folder: Path
    manifest: Manifest
    held: HeldFiles | None = field(default=None, compare=False, repr=False)
    """Its files, open since they were checked; None while a package is being made."""

    def path(self, relative: str) -> Path:
        """Where a file of the package can be opened, even if another package has its place by now."""
        return self.held.path(relative) if self.held else self.folder / relative

    def is_in_place(self, relative: str) -> bool:
        """Whether a file can be opened by its name."""
        return self.held is None or self.held.is_in_place(relative)

    def refuse_changed(self) -> None:
        """Look whether somebody wrote to its files, which engines have mapped.

        Raises:
            PackageError: what they hold is not what was checked.
        """
        if self.held is None:
            return
        written = self.held.find_written()
        for record in (record for record in self.manifest.files if record.path in written):
            if not self._still_holds(self.held, record):
                raise PackageError(
                    f"{self.folder / record.path} was changed while it was in use: copy the package again, and start "
                    "again."
                )
            self.held.accept(record.path)

    @property
    def size(self) -> int:
        """Bytes of all files together, without the manifest."""
        return self.manifest.size

    def _still_holds(self, held: HeldFiles, record: FileRecord) -> bool:
        try:
            return held.size(record.path) == record.size and hash_file(held.path(record.path)) == record.sha256
        except OSError:
            return False


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
    for _ in range(_ATTEMPTS - 1):
        held = _hold(path, [MANIFEST_NAME])
        try:
            return _open_package(path, check_again=check_again)
        except PackageError:
            # Unless another package took its place meanwhile.
            if held is None or held.is_in_place(MANIFEST_NAME):
                raise
    return _open_package(path, check_again=check_again)


def _open_package(path: Path, *, check_again: bool) -> Package:
    try:
        manifest = read_manifest(path)
        remembered = set() if check_again else _remembered_files()
        passed = [_check_file(path, record, remembered) for record in manifest.files]
        names = (MANIFEST_NAME, *(record.path for record in manifest.files))
        held = HeldFiles(path.resolve(), names)
        if (
            read_manifest(path) != manifest
            or [_check_file(path, each, set(passed)) for each in manifest.files] != passed
        ):
            raise PackageError(f"{path} was replaced while it was being opened: open it again.")
    except OSError as error:
        raise PackageError(f"{error.filename or path} cannot be read ({error.strerror}).") from None
    if not remembered.issuperset(passed):
        _remember_files(passed)
    return Package(path, manifest, held)


def _hold(folder: Path, names: Sequence[str]) -> HeldFiles | None:
    try:
        return HeldFiles(folder, names)
    except OSError:
        return None


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
    with named_file(path), path.open("rb") as file:
        while count := file.readinto(buffer):
            yield buffer[:count]


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
