"""Instructions are the same for clip after clip: their keys and values are computed once, and kept."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from cabochon.backend import CacheRows, Decoder
from cabochon.cache_file import read_cache_file, write_cache_file
from cabochon.decode import require_room, run_prompt
from cabochon.embedder import Embedder
from cabochon.errors import PackageError
from cabochon.whole_file import remove_leftovers

IN_MEMORY, ON_DISK = 8, 64
"""Prefixes that are kept; 50 tokens of E2B take 2 MB."""


class KeptPrefixes:
    """Beginnings of prompts, in memory and in a folder."""

    def __init__(self, decoder: Decoder, embedder: Embedder, model: str, folder: Path | None) -> None:
        """Args: model: the text that tells it from all others; folder: None keeps nothing on disk."""
        self._decoder, self._embedder = decoder, embedder
        self._model, self._folder = model, folder
        self._kept: OrderedDict[tuple[int, ...], CacheRows] = OrderedDict()

    def run(self, tokens: Sequence[int]) -> None:
        """Bring the decoder to where it is after these tokens: to the bit, whether they were kept or not.

        Raises:
            RequestError: they leave no room for an answer.
        """
        key = tuple(tokens)
        if not key:
            return
        require_room(self._decoder, len(key))
        rows = self._kept.get(key) or self._read(key)
        if rows is None or not self._restore(rows):
            run_prompt(self._decoder, self._embedder.prepare(key), 0, logits_to_keep=0)
            rows = self._decoder.read_caches(len(key))
            self._write(key, rows)
        self._kept[key] = rows
        self._kept.move_to_end(key)
        while len(self._kept) > IN_MEMORY:
            self._kept.popitem(last=False)

    def _restore(self, rows: CacheRows) -> bool:
        try:
            self._decoder.write_caches(rows)
        except ValueError:  # from a damaged file
            return False
        return True

    def _path(self, folder: Path, key: tuple[int, ...]) -> Path:
        digest = hashlib.sha256(f"{self._model} {key}".encode()).hexdigest()
        return folder / f"{digest[:32]}.npz"

    def _read(self, key: tuple[int, ...]) -> CacheRows | None:
        if self._folder is None:
            return None
        try:
            tokens, rows, _ = read_cache_file(self._path(self._folder, key), self._model)
        except PackageError:
            return None
        return rows if tuple(tokens) == key else None

    def _write(self, key: tuple[int, ...], rows: CacheRows) -> None:
        """A folder that cannot be written to only costs time."""
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self._folder)
            others = sorted(self._folder.glob("*.npz"), key=lambda path: path.stat().st_mtime)
            for path in others[: max(0, len(others) + 1 - ON_DISK)]:
                path.unlink(missing_ok=True)
            write_cache_file(self._path(self._folder, key), self._model, key, rows)
        except OSError:
            pass
