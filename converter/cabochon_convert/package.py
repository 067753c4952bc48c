"""Writing a package folder so that it is either whole or not there at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cabochon.errors import CabochonError
from cabochon.manifest import MANIFEST_NAME, FileRecord, Manifest
from cabochon.manifest_file import manifest_to_text
from cabochon.package import hash_file

REPORT_NAME = "report.json"
REPORT_PAGE_NAME = "report.html"
"""What a verification found; not part of the manifest, because it is written afterwards."""
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class OutputError(CabochonError, OSError):
    """The package cannot be written: it exists, the disk is full, the folder is read-only."""


@contextmanager
def new_package(folder: Path, *, replace: bool) -> Iterator[Path]:
    """A folder beside `folder` to write into; it becomes `folder` when the block ends, and vanishes when it fails.

    Args:
        folder: the package to be.
        replace: whether an existing package may be replaced; nothing else ever is.

    Raises:
        OutputError: something is there already, or the disk refuses.
    """
    folder = folder.resolve()
    # The process id keeps two conversions apart and tells which leftovers no process is writing any more.
    beside = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        _refuse_existing(folder, replace)
        beside.mkdir()
        yield beside
        _sync_folder(beside)
        _put_in_place(beside, folder)
    except OSError as error:
        if isinstance(error, CabochonError):
            raise
        if error.errno in NO_SPACE:
            raise OutputError(f"the disk of {folder} is full: free some space and convert again.") from None
        raise OutputError(f"{error.filename or folder} cannot be written ({error.strerror}).") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def list_files(folder: Path, progress: Callable[[int], None]) -> tuple[FileRecord, ...]:
    """Size and SHA-256 of every file below a folder, in name order; reports the bytes it went through."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple(
        FileRecord(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=hash_file(path, progress))
        for path in paths
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json; the last file of a package to be written."""
    (folder / MANIFEST_NAME).write_text(manifest_to_text(manifest), encoding="utf-8")


def _refuse_existing(folder: Path, replace: bool) -> None:
    if not folder.name or folder == Path.cwd() or folder.is_mount():
        raise OutputError(f"{folder} cannot be replaced by a package: name a new folder below it.")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    own_files = _package_files(folder)
    if own_files is None:
        raise OutputError(f"{folder} exists and is not a package: choose another name.")
    if not replace:
        raise OutputError(f"{folder} exists already: choose another name, or replace it with --replace.")
    foreign = [path for path in folder.rglob("*") if not path.is_dir() and path not in own_files]
    if foreign:
        raise OutputError(f"{folder} holds {foreign[0].name}, which is not the package's: move it away first.")


def _package_files(folder: Path) -> set[Path] | None:
    """What a package of any format version consists of; None where there is no package."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        names = [record["path"] for record in manifest["files"]]
        if type(manifest["format_version"]) is int and manifest["created_by"].startswith("cabochon"):
            return {folder / name for name in (*names, MANIFEST_NAME, REPORT_NAME, REPORT_PAGE_NAME)}
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        pass
    return None


def _remove_leftovers(folder: Path) -> None:
    """Clean up after a conversion into this folder that was killed; a package that it had moved away comes back."""
    prefix = f".{folder.name}.partial-"
    for leftover in folder.parent.iterdir():
        process, _, replaced = leftover.name.removeprefix(prefix).partition("-")
        if not leftover.name.startswith(prefix) or not process.isdecimal() or _is_alive(int(process)):
            continue
        if replaced and not folder.exists():
            leftover.rename(folder)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return process != os.getpid()


def _sync_folder(folder: Path) -> None:
    """Make sure that the files are on the disk before the folder gets its name."""
    for path in [*(path for path in folder.rglob("*") if path.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _put_in_place(beside: Path, folder: Path) -> None:
    replaced = folder.with_name(f".{folder.name}.partial-{os.getpid()}-replaced")
    if folder.exists():
        folder.rename(replaced)
    try:
        beside.rename(folder)
    except BaseException:
        if replaced.exists():
            replaced.rename(folder)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
