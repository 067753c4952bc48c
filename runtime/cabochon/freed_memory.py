"""Memory that a process keeps and does not need: what was freed, and pages of files that were read once.

What a process has in memory is what a system that runs short of it looks at, and what people compare.
"""

from __future__ import annotations

import ctypes
import functools
import re
from pathlib import Path
from typing import Any

from cabochon.machine import PROC, read_text

_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \d+ +(/.*)$", re.MULTILINE)
"""A line of /proc/self/maps: https://man7.org/linux/man-pages/man5/proc_pid_maps.5.html."""
_DONTNEED = 4
"""MADV_DONTNEED of Linux: pages of a file are read again when they are next looked at."""


def return_freed_memory() -> None:
    """Ask the C library to return what was freed: reading a tokenizer.json leaves twice as much behind as it makes.

    Nothing happens where the library is not glibc, which alone keeps that much.
    """
    trim = _find_function("malloc_trim")
    if trim is not None:
        trim(0)


def drop_file_pages(path: Path) -> None:
    """Take the pages of a file out of this process wherever it is mapped for reading; nothing on other systems."""
    advise = _find_function("madvise")
    if advise is None:
        return
    wanted = str(path.resolve())
    for start, end, permissions, name in _MAPPING.findall(read_text(PROC / "self" / "maps")):
        # What was written to a private mapping would be lost.
        if name == wanted and "w" not in permissions:
            first = int(start, 16)
            advise(ctypes.c_void_p(first), ctypes.c_size_t(int(end, 16) - first), _DONTNEED)


@functools.cache
def _find_function(name: str) -> Any | None:
    """Of the C library; None on systems other than Linux, where it means something else or is missing."""
    if not (PROC / "self" / "maps").is_file():
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError):
        return None
