"""Two folders that change names in one step, so that neither is missing at any moment."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_HERE = -100
"""AT_FDCWD of Linux: paths are as they are given."""
_EXCHANGE = 2
"""RENAME_EXCHANGE: https://man7.org/linux/man-pages/man2/rename.2.html."""


def exchange_folders(first: Path, second: Path) -> bool:
    """Let two folders of one disk change names; False, and nothing done, where this system or disk cannot."""
    try:
        exchange = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # no Linux, or a C library that does not know it
        return False
    done: int = exchange(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE)
    return done == 0
