"""Files of keys and values: what a decoder remembers of some tokens, to go on after them at another time.

A zip of NumPy arrays (`.npz`, stored as they are, each with a checksum): `model`, the text that says whose they are;
`tokens`, int64; `about`, any text; `rows_0`, `rows_1`, …, the arrays of `CacheRows`; `media_0`, …, embeddings of
images and sounds among the tokens, in whose places there are marks below 0.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.backend import CacheRows
from cabochon.errors import PackageError
from cabochon.whole_file import replace_bytes

CACHE_FORMAT = 1
"""Rises when the same package gives other keys and values."""


def write_cache_file(
    path: Path,
    model: str,
    tokens: Sequence[int],
    rows: CacheRows,
    about: str = "",
    media: Sequence[Float32Array] = (),
) -> None:
    """Write what a model remembers of some tokens; OSError where the file cannot be written."""
    arrays: dict[str, Any] = {f"rows_{number}": array for number, array in enumerate(rows.rows)}
    arrays |= {f"media_{number}": array for number, array in enumerate(media)}
    buffer = io.BytesIO()
    np.savez(buffer, model=np.array(model), about=np.array(about), tokens=np.array(tokens, np.int64), **arrays)
    replace_bytes(path, buffer.getbuffer())


def read_cache_file(path: Path, model: str) -> tuple[list[int], CacheRows, str]:
    """The tokens, what the model remembers of them, and what was written about them.

    Raises:
        PackageError: the file is damaged, or of another model.
    """
    with _opened(path) as file:
        found, about, tokens = str(file["model"]), str(file["about"]), file["tokens"]
        arrays = _numbered(file, "rows_")
    if found != model:
        raise PackageError(f"{path} belongs to another model or version: make it again.")
    # Texts of no length take no room, and there may be any number of them.
    if tokens.ndim != 1 or tokens.dtype != np.int64:
        raise PackageError(f"{path} has no list of tokens.")
    return tokens.tolist(), CacheRows(len(tokens), tuple(arrays)), about


def read_media(path: Path) -> list[np.ndarray]:
    """Embeddings that were written with the tokens.

    Raises:
        PackageError: the file is damaged.
    """
    with _opened(path) as file:
        return _numbered(file, "media_")


def _numbered(file: Any, name: str) -> list[np.ndarray]:
    count = sum(each.startswith(name) for each in file.files)
    return [file[f"{name}{number}"] for number in range(count)]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file; whatever reading it raises becomes one sentence."""
    try:
        # numpy would leave a file open that is no zip.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            # A small file would become a large one in memory.
            if any(each.compress_type != zipfile.ZIP_STORED for each in file.zip.infolist()):
                raise PackageError(f"{path} is compressed, which no file of keys and values is: make it again.")
            yield file
    # numpy, zipfile, tokenize and lzma raise every kind for bytes that are no such file.
    except PackageError:
        raise
    except Exception:
        raise PackageError(
            f"{path} is not a file of keys and values: expected one that cabochon saved, such as a conversation."
        ) from None
