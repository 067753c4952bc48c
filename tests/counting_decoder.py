"""A decoder that is known exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cabochon.backend import CacheRows
from cabochon.embedder import Embedder

VOCABULARY, HIDDEN, WIDTH, PAD = 100, 4, 6, 0


class CountingDecoder:
    """Answers every token with the next number, and notes what it was run on."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.earliest_position = 0
        self.runs: list[tuple[int, int]] = []
        self.logits_given: list[int] = []
        self.held: list[float] = []
        """The number of each token, which is all that its rows hold."""

    def run(
        self, inputs_embeds: np.ndarray, per_layer_inputs: np.ndarray, position: int, logits_to_keep: int = 1
    ) -> np.ndarray:
        assert len(inputs_embeds) == len(per_layer_inputs)
        assert position + len(inputs_embeds) <= self.capacity
        self.runs.append((position, len(inputs_embeds)))
        self.held = self.held[:position] + inputs_embeds[:, 0].tolist()
        self.logits_given.append(logits_to_keep)
        logits = np.zeros((logits_to_keep, VOCABULARY), np.float32)
        for row, number in zip(logits, inputs_embeds[len(inputs_embeds) - logits_to_keep :, 0], strict=True):
            row[int(number) + 1] = 1
        return logits

    def read_caches(self, end: int) -> CacheRows:
        return CacheRows(end, (np.array(self.held[:end], np.float32).reshape(1, -1, 1),))

    def write_caches(self, rows: CacheRows) -> None:
        if rows.rows[0].shape != (1, rows.end, 1):
            raise ValueError
        self.held = rows.rows[0].ravel().tolist()


class Counted:
    """Rows that hold their token."""

    def __init__(self, columns: int) -> None:
        self._columns = columns

    def look_up(self, tokens: Sequence[int]) -> np.ndarray:
        return np.repeat(np.array(tokens, np.float32)[:, None], self._columns, axis=1)


EMBEDDER = Embedder(Counted(HIDDEN), Counted(WIDTH), PAD)
