"""The reference's eyes: transformers' vision tower and its projection, in float32, apart from the rest of the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.errors import missing_dependency
from cabochon_convert.progress import Progress
from cabochon_convert.source import CheckpointSource

try:
    import torch
    import transformers
except ImportError as error:
    raise missing_dependency(str(error.name), "verify") from None

from cabochon_convert.reference_weights import load_vision


class VisionReference:
    """The vision tower of a checkpoint, run by transformers: all of its weights are in memory, 0.7 GB for E2B.

    Args:
        checkpoint: the checkpoint, or its folder.
        progress: told of every image that was seen.
    """

    def __init__(self, checkpoint: CheckpointSource | Path, progress: Progress) -> None:
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self._progress = progress
        self._model: Any = load_vision(checkpoint)

    @torch.no_grad()
    def embeddings(self, images: Sequence[Float32Array]) -> list[Float32Array]:
        """Patches of images, each [rows, columns, values], to embeddings [tokens, hidden]."""
        self._progress.start("reference: images", len(images), "image")
        found = []
        for patches in images:
            rows, columns, values = patches.shape
            places = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(1, -1, 2)
            pixels = torch.from_numpy(patches.reshape(1, -1, values))
            seen = self._model.model.get_image_features(pixels, torch.from_numpy(places))
            found.append(np.asarray(seen.pooler_output[0]))
            self._progress.advance(1)
        return found
