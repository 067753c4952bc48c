"""Files of weights in the order of an engine's kernels, which the engine writes in place and maps at the next start.

The engine forces nothing onto the disk. After a power cut such a file may have its length and no content, and weights
of zero would be calculated with. So a note beside says that a file was forced onto the disk, and without it the file is
made anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from cabochon.whole_file import replace_text, sync_file, sync_folder

try:
    import fcntl
except ImportError:  # Windows, where there is no such lock
    fcntl = None  # type: ignore[assignment]


@contextmanager
def kept_weights(weights: Path | None, room: int = 0) -> Iterator[str]:
    """A file for an engine to read and to write within; "" where weights cannot be kept, which only costs time.

    Args:
        weights: the file; None where there is no place.
        room: bytes that its disk must have room for, if the file is not there.

    One process at a time, because a second one would write over what the first has mapped.
    """
    with ExitStack() as stack:
        lock = None
        if weights is not None:
            with suppress(OSError):
                lock = stack.enter_context(open(f"{weights}.lock", "w"))  # noqa: PTH123
        if lock is not None and fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        usable = weights if lock is not None and weights is not None and _is_usable(weights, room) else None
        yield str(usable or "")
        if usable is not None:
            _keep(usable)


def _is_usable(weights: Path, room: int) -> bool:
    """Whether an engine may have this file: what is there is whole, or nothing is there and can be made."""
    if weights.is_file() and _state(weights) == _noted(weights):
        return True
    _forget(weights)
    return not weights.exists() and _has_room(weights, room)


def _has_room(weights: Path, room: int) -> bool:
    """Whether a file of so many bytes can be written: quotas and limits of a process are known to nobody else."""
    if not hasattr(os, "posix_fallocate") or room <= 0:
        return True
    try:
        with weights.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, room)
    except OSError:
        return False
    finally:
        _forget(weights)
    return True


def _forget(weights: Path) -> None:
    """Whoever has it mapped keeps it."""
    with suppress(OSError):
        weights.unlink(missing_ok=True)


def _keep(weights: Path) -> None:
    try:
        if not weights.is_file() or _state(weights) == _noted(weights):
            return
        sync_file(weights)
        sync_folder(weights.parent)
        replace_text(_note(weights), _state(weights))
    except OSError:
        _forget(weights)


def _state(weights: Path) -> str:
    status = weights.stat()
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"


def _noted(weights: Path) -> str:
    try:
        return _note(weights).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _note(weights: Path) -> Path:
    return Path(f"{weights}.whole")
