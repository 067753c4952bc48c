"""Where a checkpoint and its adapter come from: folders on this disk, or repositories of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cabochon.errors import RequestError
from cabochon_convert.checkpoint import Checkpoint, CheckpointError, checkpoint_name, open_checkpoint, read_json
from cabochon_convert.lora import merge_adapter, open_adapter

# ORGANISATION/MODEL, with what the hub allows in names; `../model` and `/model` are paths.
_HUB_ID = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """A LoRA adapter on this disk, and what a package says about its origin."""

    folder: Path
    name: str
    """Of the folder, without the path of this machine, or of the repository on the hub."""
    revision: str | None = None
    """Commit of the hub's repository; None for a folder of the user's own."""


@dataclass(frozen=True, slots=True)
class CheckpointSource:
    """A checkpoint on this disk, and what a package says about its origin."""

    folder: Path
    name: str
    """Of the folder, without the path of this machine, or of the model on the hub."""
    revision: str | None = None
    """Commit of the hub's repository; None for a folder of the user's own."""
    adapter: AdapterSource | None = None
    """What is merged into its weights."""


def local_source(folder: Path) -> CheckpointSource:
    """A folder of the user's own."""
    return CheckpointSource(folder, checkpoint_name(folder))


def open_source(source: CheckpointSource | Path, on_read: Callable[[int], None] | None = None) -> Checkpoint:
    """The tensors of a checkpoint, or of the folder of one, with those of its adapter merged into them.

    Raises:
        CheckpointError: one of them is incomplete or damaged, or they do not fit together.
    """
    source = local_source(source) if isinstance(source, Path) else source
    checkpoint = open_checkpoint(source.folder, on_read)
    if source.adapter is None:
        return checkpoint
    config = read_json(source.folder / "config.json")
    if config.get("quantization_config") is not None:
        raise CheckpointError(
            f"{source.folder} holds integers, into which no adapter can be merged without rounding them again: "
            "name the unquantized (bf16) model that the adapter was trained on."
        )
    adapter = open_adapter(source.adapter.folder)
    return merge_adapter(checkpoint, adapter, ties_embeddings=config.get("tie_word_embeddings", True) is not False)


def find_source(place: str, revision: str | None = None, option: str = "--revision") -> CheckpointSource:
    """The checkpoint that a user named: a folder, else the hub's id of a model, which is downloaded or in the cache.

    Args:
        place: path or id.
        revision: branch, tag or commit of the hub's repository; None for its main branch.
        option: that the user names the revision with.

    Raises:
        CheckpointError: no folder and no id, or the hub does not give the model away.
        RequestError: a revision of a folder.
    """
    if _is_local(place, revision, option, "google/gemma-4-E2B-it"):
        return local_source(Path(place))
    # Whoever converts a folder needs no library for the hub.
    from cabochon_convert.hub import download_checkpoint

    folder = download_checkpoint(place, revision)
    return CheckpointSource(folder, place, revision=folder.name)


def find_adapter(place: str, revision: str | None = None) -> AdapterSource:
    """The LoRA adapter that a user named; like `find_source`."""
    if _is_local(place, revision, "--lora-revision", "my-name/my-adapter"):
        return AdapterSource(Path(place), checkpoint_name(Path(place)))
    from cabochon_convert.hub import download_adapter

    folder = download_adapter(place, revision)
    return AdapterSource(folder, place, revision=folder.name)


def _is_local(place: str, revision: str | None, option: str, example: str) -> bool:
    """Whether a place is on this disk; if not, it can be on the hub."""
    if _exists(Path(place)):
        if revision is not None:
            raise RequestError(f"{option} {revision} is for a model of the hub, but {place} is on this disk.")
        return True
    if not _HUB_ID.fullmatch(place):
        raise CheckpointError(
            f"{place} is neither a folder on this disk nor the id of a model on the Hugging Face hub: "
            f"expected something like {example}."
        )
    return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file can have
        return False
