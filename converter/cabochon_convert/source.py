"""Where a checkpoint comes from: a folder on this disk, or a model of the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cabochon.errors import RequestError
from cabochon_convert.checkpoint import CheckpointError, checkpoint_name

# ORGANISATION/MODEL, with what the hub allows in names; `../model` and `/model` are paths.
_HUB_ID = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True, slots=True)
class CheckpointSource:
    """A checkpoint on this disk, and what a package says about its origin."""

    folder: Path
    name: str
    """Of the folder, without the path of this machine, or of the model on the hub."""
    revision: str | None = None
    """Commit of the hub's repository; None for a folder of the user's own."""


def local_source(folder: Path) -> CheckpointSource:
    """A folder of the user's own."""
    return CheckpointSource(folder, checkpoint_name(folder))


def find_source(place: str, revision: str | None = None) -> CheckpointSource:
    """The checkpoint that a user named: a folder, else the hub's id of a model, which is downloaded or in the cache.

    Args:
        place: path or id.
        revision: branch, tag or commit of the hub's repository; None for its main branch.

    Raises:
        CheckpointError: no folder and no id, or the hub does not give the model away.
        RequestError: a revision of a folder.
    """
    path = Path(place)
    if _exists(path):
        if revision is not None:
            raise RequestError(f"--revision {revision} is for a model of the hub, but {place} is on this disk.")
        return local_source(path)
    if not _HUB_ID.fullmatch(place):
        raise CheckpointError(
            f"{place} is neither a folder on this disk nor the id of a model on the Hugging Face hub: "
            "expected something like google/gemma-4-E2B-it."
        )
    # Whoever converts a folder needs no library for the hub.
    from cabochon_convert.hub import download_checkpoint

    folder = download_checkpoint(place, revision)
    return CheckpointSource(folder, place, revision=folder.name)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file can have
        return False
