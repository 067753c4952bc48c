"""A hidden folder beside what is to be written: what is half done lies there, and goes when its writer is gone."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cabochon.errors import CabochonError
from cabochon.whole_file import is_alive, sync_file, sync_folder

try:
    import fcntl
except ImportError:  # Windows, where there is no such lock
    fcntl = None  # type: ignore[assignment]


NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class OutputError(CabochonError, OSError):
    """What was asked for cannot be written: it exists, the disk is full, the folder is read-only."""


@contextmanager
def output_errors(target: Path) -> Iterator[None]:
    """What goes wrong with files within, in one sentence.

    Raises:
        OutputError: in place of any OSError.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, CabochonError):
            raise
        if error.errno in NO_SPACE:
            raise OutputError(f"the disk of {target} is full: free some space and start again.") from None
        raise OutputError(f"{error.filename or target} cannot be written ({error.strerror}).") from None


@contextmanager
def work_folder(target: Path) -> Iterator[Path]:
    """A folder on the disk of `target`, for what is to become it; it vanishes when the block ends.

    What a killed process left there goes first; a package that it had moved away comes back.

    Raises:
        OutputError: another process is at work on the same target.
    """
    folder = target.parent / f"{_prefix(target)}{os.getpid()}"
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    try:
        folder.mkdir()
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def replaced_name(target: Path) -> Path:
    """Where what stands in the place of `target` waits until something else stands there."""
    return target.parent / f"{_prefix(target)}{os.getpid()}-replaced"


def sync_files(folder: Path) -> None:
    """Force all files below a folder, and their names, onto the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            sync_file(path)
    for path in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync_folder(path)


def _prefix(target: Path) -> str:
    return f".{target.name}.partial-"


def _remove_leftovers(target: Path) -> None:
    prefix = _prefix(target)
    found = []
    for leftover in target.parent.iterdir():
        process, _, kind = leftover.name.removeprefix(prefix).partition("-")
        if not leftover.name.startswith(prefix) or not process.isdecimal():
            continue
        if not kind and _is_locked(leftover, int(process)):
            raise OutputError(
                f"{target} is being written by process {process}: wait until it has ended, or choose another name."
            )
        found.append((leftover, kind))
    for leftover, kind in found:
        if kind and not target.exists():
            leftover.rename(target)
        elif leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Others see that somebody is at work. The system unlocks for whoever is killed, while the number of a process says
    nothing after a restart of the machine, or in another container.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a disk without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _is_locked(folder: Path, process: int) -> bool:
    if fcntl is None:
        return is_alive(process)
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a disk without locks
        return is_alive(process)
    finally:
        os.close(descriptor)
    return False
