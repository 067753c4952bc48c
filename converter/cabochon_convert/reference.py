"""The reference: transformers' own Gemma 4, in float32, behind the few questions that verification asks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.errors import RequestError, missing_dependency
from cabochon_convert.checkpoint import open_checkpoint

try:
    import torch
    import transformers
except ImportError as error:
    raise missing_dependency(str(error.name), "verify") from None


class ReferenceModel:
    """A checkpoint run by transformers."""

    def __init__(self, checkpoint: Path) -> None:
        refuse_too_large(checkpoint)
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        model = transformers.Gemma4ForConditionalGeneration.from_pretrained(str(checkpoint), dtype=torch.float32)
        self._model: Any = model.eval()

    @torch.no_grad()
    def audio_embeddings(self, log_mel: Float32Array) -> Float32Array:
        """Log-mel [frames, mel_bins] to embeddings [tokens, hidden]."""
        features, mask = _features(log_mel)
        output = self._model.model.get_audio_features(features, mask)
        return np.asarray(output.pooler_output[0])

    @torch.no_grad()
    def logits(self, tokens: Sequence[int], log_mel: Float32Array | None) -> Float32Array:
        """Soft-capped logits of every position: [positions, vocabulary]."""
        return np.asarray(self._model(input_ids=torch.tensor([list(tokens)]), **_audio_inputs(log_mel)).logits[0])

    @torch.no_grad()
    def greedy(
        self,
        tokens: Sequence[int],
        log_mel: Float32Array | None,
        suppress: Sequence[int],
        count: int,
        stop_tokens: Sequence[int] = (),
    ) -> list[int]:
        """The likeliest continuation: at most `count` tokens, up to a stop token."""
        output = self._model(input_ids=torch.tensor([list(tokens)]), use_cache=True, **_audio_inputs(log_mel))
        chosen: list[int] = []
        while True:
            logits = output.logits[0, -1]
            logits[list(suppress)] = -torch.inf
            token = int(logits.argmax())
            if token in stop_tokens:
                return chosen
            chosen.append(token)
            if len(chosen) == count:
                return chosen
            output = self._model(
                input_ids=torch.tensor([chosen[-1:]]), past_key_values=output.past_key_values, use_cache=True
            )


def _features(log_mel: Float32Array) -> tuple[Any, Any]:
    return torch.from_numpy(log_mel)[None], torch.ones((1, len(log_mel)), dtype=torch.bool)


def _audio_inputs(log_mel: Float32Array | None) -> dict[str, Any]:
    if log_mel is None:
        return {}
    features, mask = _features(log_mel)
    return {"input_features": features, "input_features_mask": mask}


def refuse_too_large(checkpoint: Path) -> None:
    """The whole model is held as float32; better to say so than to be killed."""
    needed = 4 * open_checkpoint(checkpoint).value_count
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > 0.9 * physical:
        raise RequestError(
            f"verifying needs about {needed / 1e9:.0f} GB of memory for the reference model and this machine has "
            f"{physical / 1e9:.0f} GB: run --verify on a larger machine."
        )
