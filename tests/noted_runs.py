"""What a model's decoder is run on."""

from __future__ import annotations

import numpy as np
import pytest

import cabochon


def noted_runs(model: cabochon.Model, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Position and length of each run from now on, as they come."""
    runs: list[tuple[int, int]] = []
    decoder = model._session.decoder
    run = decoder.run

    def note(
        inputs_embeds: np.ndarray, per_layer_inputs: np.ndarray, position: int, logits_to_keep: int = 1
    ) -> np.ndarray:
        runs.append((position, len(inputs_embeds)))
        return run(inputs_embeds, per_layer_inputs, position, logits_to_keep)

    monkeypatch.setattr(decoder, "run", note)
    return runs
