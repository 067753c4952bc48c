"""Choosing the next token from logits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.errors import RequestError

if TYPE_CHECKING:
    from cabochon.manifest import Sampling


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How a call wants its tokens chosen."""

    temperature: float = 0.0
    """0 takes the likeliest token (greedy)."""
    top_k: int = 0
    """Candidates to choose from; 0 means all."""
    top_p: float = 1.0
    """Smallest probability mass that the candidates must hold together."""
    seed: int | None = None
    """Of the random choice; None draws one from the system."""

    def __post_init__(self) -> None:
        sound = 0 <= self.temperature < math.inf and self.top_k >= 0 and 0 < self.top_p <= 1
        if not sound or (self.seed is not None and self.seed < 0):
            raise RequestError(f"{self} is impossible: expected temperature, top_k and seed >= 0, 0 < top_p <= 1.")

    @classmethod
    def of_checkpoint(cls, sampling: Sampling, seed: int | None = None) -> SamplingSettings:
        """The checkpoint's own generation defaults."""
        return cls(sampling.temperature, sampling.top_k, sampling.top_p, seed)


NEAR_TIE = 1e-4
"""Engines add up in different orders, which moves float logits by some 1e-5: of tokens that are this close to the
largest logit, the lowest is taken, so that a tie falls the same way on all of them."""


class Sampler:
    """Chooses tokens under fixed settings."""

    def __init__(self, settings: SamplingSettings, suppress: tuple[int, ...], logit_softcap: float) -> None:
        self._settings = settings
        self._suppress = np.array(suppress, np.int64)
        self._logit_softcap = logit_softcap
        self._random = np.random.default_rng(settings.seed)

    def choose(self, logits: Float32Array) -> int:
        """The next token, from raw (not yet soft-capped) logits [vocabulary]; the array is changed in place."""
        logits[self._suppress] = -np.inf
        if self._settings.temperature == 0:
            # The soft cap is monotonic, so it cannot change which logit is the largest.
            return int(np.argmax(logits >= logits.max() - np.float32(NEAR_TIE)))
        candidates, probabilities = self._candidates(logits)
        return int(self._random.choice(candidates, p=probabilities))

    def _candidates(self, logits: Float32Array) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and their probabilities after top-k, soft cap, temperature and top-p, likeliest first."""
        count = min(self._settings.top_k or len(logits), len(logits))
        candidates = np.argpartition(logits, len(logits) - count)[len(logits) - count :]
        candidates = candidates[np.argsort(-logits[candidates], kind="stable")]
        kept = soft_cap(logits[candidates], self._logit_softcap).astype(np.float64)
        # Subtracting first keeps a tiny temperature from making infinity of the largest logit.
        with np.errstate(over="ignore"):
            probabilities = np.exp((kept - kept[0]) / self._settings.temperature)
        probabilities /= probabilities.sum()
        # Keep a candidate while the mass before it is below top_p, so that the likeliest one always stays.
        needed = int((np.cumsum(probabilities) - probabilities < self._settings.top_p).sum())
        probabilities = probabilities[:needed]
        return candidates[:needed], probabilities / probabilities.sum()


def soft_cap(logits: Float32Array, cap: float) -> Float32Array:
    """cap * tanh(logits / cap), or the logits themselves for a cap of 0."""
    if cap == 0:
        return logits
    capped: Float32Array = np.where(np.isneginf(logits), logits, cap * np.tanh(logits / cap))
    return capped
