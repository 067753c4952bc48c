"""Files that are there whole or not at all, whatever ends their writing: a full disk, a kill, a power cut.

What is new is written beside and forced onto the disk before it gets its name, and the name is forced onto the disk
before anything else is done that relies on it: https://lwn.net/Articles/457667/.
"""

from __future__ import annotations

import errno
import glob
import itertools
import os
import sys
from pathlib import Path

_MARK = ".cabochon-"
"""In the names of what is being written: nobody else's files look like that."""
_NUMBERS = itertools.count()
"""Threads of one process write the same file at once, too."""


def replace_text(path: Path, text: str) -> None:
    """Write a text file whole: whoever reads meanwhile finds the old one or the new one."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole: whoever reads meanwhile, or after a power cut, finds the old one or the new one."""
    remove_leftovers(path.parent, path.name)
    beside = path.with_name(f".{path.name}{_MARK}{os.getpid()}-{next(_NUMBERS)}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what writers of a file, or without a name of any file, left beside it when they were killed."""
    beginning = ".*" if name is None else f".{glob.escape(name)}"
    for leftover in folder.glob(f"{beginning}{_MARK}*"):
        process, _, number = leftover.name.rpartition(_MARK)[2].partition("-")
        is_ours = process.isdecimal() and number.isdecimal() and leftover.is_file()
        if is_ours and int(process) != os.getpid() and not is_alive(int(process)):
            leftover.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Whether another process has this number; true where nobody can be asked."""
    if sys.platform == "win32":  # there, the signal 0 is Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return process != os.getpid()


def sync_file(path: Path) -> None:
    """Force what somebody else wrote into a file onto the disk."""
    with path.open("r+b" if sys.platform == "win32" else "rb") as file:  # which syncs only what may be written
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Force the names in a folder onto the disk; nothing on systems whose folders cannot be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows, or a folder that may be written and not listed
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems write names at once
            raise
    finally:
        os.close(descriptor)
