"""Keeping libraries that talk from the user's terminal: C++ and imports write past Python's streams."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(*descriptors: int) -> Iterator[None]:
    """Within it, standard output (1) or standard error (2) leads nowhere; errors are raised as ever."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    saved = []
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for descriptor in descriptors:
            try:
                saved.append((descriptor, os.dup(descriptor)))
            except OSError:  # a process without this stream
                continue
            os.dup2(nowhere, descriptor)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        for descriptor, copy in saved:
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(nowhere)
