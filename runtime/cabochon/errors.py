"""The errors that cabochon raises on purpose: one sentence each, for the person who typed the command."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class CabochonError(Exception):
    """Base of every error that is the input's fault, not the program's.

    The message is one sentence that says what was found, what was expected and what to do about it;
    the command line prints it and exits with status 2.
    """


class PackageError(CabochonError, ValueError):
    """A package folder that cannot be used: missing, altered, of another format version, or unsafe."""


class AudioError(CabochonError, ValueError):
    """A sound that cannot be read, is empty, or does not fit the model."""


class ImageError(CabochonError, ValueError):
    """An image or a video that cannot be read, or does not fit the model."""


class RequestError(CabochonError, ValueError):
    """A wish that the loaded model cannot fulfil: an unknown language, a prompt that is too long."""


class MissingDependencyError(CabochonError, ImportError):
    """An optional library that the requested work needs is not installed."""


class NoMemoryError(CabochonError, MemoryError):
    """Memory ran out; what was asked for may work when there is more."""


FREE_MEMORY = "close other programs, ask for a shorter --context-length, or convert with a smaller recipe"
"""What helps then."""


def is_memory_error(error: BaseException) -> bool:
    """Whether an engine, numpy or the system says that memory ran out, in whichever class."""
    # The last two are the dynamic loader's and Python's.
    words = ("bad_alloc", "allocate", "bad alloc", "out of memory", "failed to map segment", "can't start new thread")
    text = str(error).lower()
    # Arm's loader allocates too little for too many libraries, whatever memory there is.
    return isinstance(error, MemoryError) or ("static tls" not in text and any(word in text for word in words))


@contextmanager
def memory_errors(what: str = "memory ran out") -> Iterator[None]:
    """Within it, whatever an engine raises when memory runs out becomes one class.

    Raises:
        NoMemoryError: memory ran out; all other errors as they are.
    """
    try:
        yield
    except Exception as error:
        if is_memory_error(error):
            raise NoMemoryError(f"{what}: {FREE_MEMORY}.") from None
        raise


@contextmanager
def named_file(path: str | os.PathLike[str]) -> Iterator[None]:
    """Within it, errors name the file: the system does so where a file is opened, not where it is read."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None


def missing_dependency(library: str, extra: str) -> CabochonError:
    """The error for an optional library that cannot be imported, naming the extra of cabochon that brings it.

    To be called while the ImportError is handled: a library that is there may not be loadable.
    """
    reason = sys.exc_info()[1]
    if isinstance(reason, ImportError) and not isinstance(reason, ModuleNotFoundError):
        if is_memory_error(reason):
            return NoMemoryError(f"memory ran out before {library} was loaded: {FREE_MEMORY}.")
        return MissingDependencyError(
            f"{library} cannot be loaded ({' '.join(str(reason).split())}): install it again."
        )
    return MissingDependencyError(
        f"{library} is not installed: install cabochon with its extra {extra!r}, "
        f"in its repository by  pip install '.[{extra}]'  and try again."
    )
