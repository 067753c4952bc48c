"""What a disk may hold after a power cut: a model of what file systems promise, played through for real code.

While code runs, every call that names, renames, removes or forces something onto the disk is noted with what lies below
a folder then. A cut may come before or after each of them. What survives it:

* of a file, what it held when it was last forced onto the disk; else nothing, or anything written since;
* of a folder, the names that it had when it was last forced onto the disk, or at any moment since, whatever other
  folders have lost.

Orders that most file systems keep by themselves, such as ext4 of a rename and a later removal, are not relied on.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import cabochon_convert.android_assets
import cabochon_convert.package

Tree = dict[str, bytes]
"""Files below a folder, by their path."""
_NAMING = ("rename", "replace", "unlink", "remove", "rmdir", "mkdir")


@dataclass
class _Folder:
    versions: list[dict[str, int]] = field(default_factory=list)
    """Names and inodes, one for each moment at which they changed."""
    safe: int = -1
    """The version that is on the disk for sure; -1: not even the folder."""


@dataclass
class _File:
    now: bytes = b""
    safe: bytes | None = None


@dataclass(frozen=True)
class _Moment:
    """What may survive: of each folder, versions of its names; of each file, contents."""

    folders: dict[int, list[dict[str, int]]]
    files: dict[int, tuple[bytes, ...]]


class DiskHistory:
    """Moments at which the power may be cut while code writes below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._root = folder.stat().st_ino
        self._folders: dict[int, _Folder] = {}
        self._files: dict[int, _File] = {}
        self._moments: list[_Moment] = []
        self.calls: list[str] = []
        self._look()
        # What was there before is on the disk.
        for found in self._folders.values():
            found.safe = 0
        for each in self._files.values():
            each.safe = each.now

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Note what happens within."""
        with pytest.MonkeyPatch.context() as patch:
            for name in _NAMING:
                patch.setattr(os, name, self._noting(name, getattr(os, name)))
            patch.setattr(os, "fsync", self._forcing(os.fsync))
            for module in (cabochon_convert.package, cabochon_convert.android_assets):
                exchange = module.exchange_folders
                patch.setattr(module, "exchange_folders", self._noting("exchange", exchange))
            yield
        self._note()

    def forget_past(self) -> None:
        """What was promised by now has to survive every later cut."""
        self._moments.clear()
        self._note()

    def outcomes(self) -> Iterator[Tree]:
        """Every state that the folder may be found in, each once."""
        seen = set()
        for moment in self._moments:
            inodes = list(moment.folders)
            for choice in itertools.product(*moment.folders.values()):
                names = dict(zip(inodes, choice, strict=True))
                for pick in (0, -1):
                    tree: Tree = {}
                    self._plant(tree, "", self._root, names, {key: each[pick] for key, each in moment.files.items()})
                    frozen = tuple(sorted(tree.items()))
                    if frozen not in seen:
                        seen.add(frozen)
                        yield tree

    def _plant(
        self, tree: Tree, place: str, folder: int, names: dict[int, dict[str, int]], contents: dict[int, bytes]
    ) -> None:
        for name, inode in names.get(folder, {}).items():
            if inode in self._folders:
                tree[f"{place}{name}/"] = b""
                self._plant(tree, f"{place}{name}/", inode, names, contents)
            else:
                tree[f"{place}{name}"] = contents.get(inode, b"")

    def _noting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self._note()
            result = function(*arguments, **options)
            self.calls.append(name)
            self._note()
            return result

        return call

    def _forcing(self, fsync: Callable[[int], None]) -> Callable[[int], None]:
        def call(descriptor: int) -> None:
            self._note()
            fsync(descriptor)
            self.calls.append("fsync")
            inode = os.fstat(descriptor).st_ino
            if inode in self._folders:
                self._folders[inode].safe = len(self._folders[inode].versions) - 1
            elif inode in self._files:
                self._files[inode].safe = self._files[inode].now
            self._note()

        return call

    def _note(self) -> None:
        self._look()
        folders = {inode: found.versions[max(found.safe, 0) :] for inode, found in self._folders.items()}
        # Of a folder that was never forced onto the disk, nothing may be there.
        for inode, found in self._folders.items():
            if found.safe < 0:
                folders[inode] = [{}, *found.versions]
        files = {
            inode: (each.now if each.safe == each.now else each.safe or b"", each.now)
            for inode, each in self._files.items()
        }
        self._moments.append(_Moment(folders, files))

    def _look(self) -> None:
        for base, folders, files in os.walk(self._folder):
            here = Path(base)
            names = {name: (here / name).stat().st_ino for name in (*folders, *files)}
            known = self._folders.setdefault(here.stat().st_ino, _Folder())
            if not known.versions or known.versions[-1] != names:
                known.versions.append(names)
            for name in files:
                self._files.setdefault(names[name], _File()).now = (here / name).read_bytes()


def plant(tree: Tree, folder: Path) -> None:
    """Make a folder that holds exactly this."""
    folder.mkdir(parents=True)
    for name, content in tree.items():
        if name.endswith("/"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
