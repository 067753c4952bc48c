"""Files of a package that stay open while it is in use.

What is loaded later, such as an encoder at the first sound, is so of the package that was checked, whatever has its
name by then. Engines map files: bytes that are cut off end the process (SIGBUS), and bytes that are changed are
calculated with. So the files are looked at before every answer, which takes microseconds.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from pathlib import Path

from cabochon.errors import PackageError
from cabochon.machine import PROC

_State = tuple[int, int]
"""Size, and when it was last written to in nanoseconds."""


class HeldFiles:
    """Open files of a folder; they are closed when nothing refers to this any more."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        """OSError where one cannot be opened."""
        self._folder = folder
        self._descriptors: dict[str, int] = {}
        weakref.finalize(self, _close, self._descriptors)
        for name in names:
            self._descriptors[name] = os.open(folder / name, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._states = {name: _state(status) for name, status in self._statuses()}

    def is_in_place(self, name: str) -> bool:
        """Whether the file still has its name."""
        try:
            return os.path.samestat((self._folder / name).stat(), os.fstat(self._descriptors[name]))
        except OSError:
            return False

    def path(self, name: str) -> Path:
        """Where the file can be opened: another one may have its name by now."""
        place = self._folder / name
        if name not in self._descriptors or self.is_in_place(name):
            return place
        opened = PROC / "self" / "fd" / str(self._descriptors[name])
        return opened if opened.exists() else place

    def find_written(self) -> list[str]:
        """Files that were written to since they were opened, or last accepted."""
        return [name for name, status in self._statuses() if _state(status) != self._states[name]]

    def size(self, name: str) -> int:
        """Bytes of a file now."""
        return os.fstat(self._descriptors[name]).st_size

    def accept(self, name: str) -> None:
        """It holds what it should, whenever it was written to."""
        self._states[name] = _state(os.fstat(self._descriptors[name]))

    def _statuses(self) -> list[tuple[str, os.stat_result]]:
        try:
            return [(name, os.fstat(descriptor)) for name, descriptor in self._descriptors.items()]
        except OSError as error:
            raise PackageError(f"{self._folder} cannot be read any more ({error.strerror}).") from None


def _state(status: os.stat_result) -> _State:
    return status.st_size, status.st_mtime_ns


def _close(descriptors: dict[str, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
