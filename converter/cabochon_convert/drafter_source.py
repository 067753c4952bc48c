"""A drafter on its way into a package: its checkpoint, its config, and what the manifest says about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cabochon.manifest import DrafterModel, Graph, SourceCheckpoint
from cabochon_convert.checkpoint import Checkpoint, CheckpointError, hash_checkpoint, open_checkpoint, read_json
from cabochon_convert.drafter_config import ARCHITECTURE, DrafterConfig, read_drafter
from cabochon_convert.source import CheckpointSource, local_source
from cabochon_convert.text_config import TextConfig


@dataclass(frozen=True, slots=True)
class DrafterSource:
    """A drafter that was found to fit the model."""

    checkpoint: Checkpoint
    config: DrafterConfig
    recommended_drafts: int
    origin: CheckpointSource

    def describe(self, graph: Graph) -> DrafterModel:
        """For the manifest, once all tensors were read."""
        return DrafterModel(
            graph=graph,
            cache_layers=self.config.cache_layers,
            recommended_drafts=self.recommended_drafts,
            source=SourceCheckpoint(
                name=self.origin.name,
                revision=self.origin.revision,
                architecture=ARCHITECTURE,
                sha256=hash_checkpoint(self.checkpoint, lambda _: None),
                skipped_tensors=self.checkpoint.unread_names,
                adapter=None,
            ),
        )


def open_drafter(
    source: CheckpointSource | Path, target: TextConfig, on_read: Callable[[int], None] | None = None
) -> DrafterSource:
    """The drafter in a folder, for a model.

    Raises:
        CheckpointError: it is incomplete, of another architecture, or for another model.
    """
    origin = local_source(source) if isinstance(source, Path) else source
    checkpoint = open_checkpoint(origin.folder, on_read)
    config = read_drafter(read_json(origin.folder / "config.json"), target)
    return DrafterSource(checkpoint, config, _recommended_drafts(origin.folder), origin)


def _recommended_drafts(folder: Path) -> int:
    """What transformers drafts with this checkpoint (`num_assistant_tokens`); 0 where nothing is said."""
    path = folder / "generation_config.json"
    count = read_json(path).get("num_assistant_tokens", 0) if path.is_file() else 0
    if type(count) is not int or count < 0:
        raise CheckpointError(f"{path} has num_assistant_tokens {count!r}, expected a whole number.")
    return count
