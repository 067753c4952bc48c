"""The errors that cabochon raises on purpose: one sentence each, for the person who typed the command."""

from __future__ import annotations


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


def missing_dependency(library: str, extra: str) -> MissingDependencyError:
    """The error for an optional library that is absent, naming the extra of cabochon that brings it."""
    return MissingDependencyError(
        f"{library} is not installed: install cabochon with its extra {extra!r}, "
        f"in its repository by  pip install '.[{extra}]'  and try again."
    )
