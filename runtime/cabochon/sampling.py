"""Choosing the next token from logits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.errors import PackageError, RequestError

if TYPE_CHECKING:
    from cabochon.manifest import Sampling


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How a call wants its tokens chosen; by default greedily. top_k comes first, then top_p, then min_p.

    Raises:
        RequestError: a value is impossible.
    """

    temperature: float = 0.0
    """0 takes the likeliest token (greedy)."""
    top_k: int = 0
    """Candidates to choose from; 0 means all."""
    top_p: float = 1.0
    """Smallest probability mass that the candidates must hold together."""
    min_p: float = 0.0
    """Of a candidate, as a share of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """What logits of tokens that were there before are divided by, or multiplied with where they are negative:
    https://arxiv.org/abs/1909.05858; 1 changes nothing."""
    seed: int | None = None
    """Of the random choice; None draws one from the system."""

    def __post_init__(self) -> None:
        is_possible = {
            "temperature": 0 <= self.temperature < math.inf,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "min_p": 0 <= self.min_p <= 1,
            "repetition_penalty": 0 < self.repetition_penalty < math.inf,
            "seed": self.seed is None or self.seed >= 0,
        }
        wrong = [f"{name} {getattr(self, name)}" for name, possible in is_possible.items() if not possible]
        if wrong:
            raise RequestError(
                f"{', '.join(wrong)} is impossible: expected temperature, top_k and seed >= 0, 0 < top_p <= 1, "
                "0 <= min_p <= 1 and repetition_penalty > 0."
            )

    @classmethod
    def of_checkpoint(cls, sampling: Sampling, seed: int | None = None) -> SamplingSettings:
        """The checkpoint's own generation defaults."""
        return cls(sampling.temperature, sampling.top_k, sampling.top_p, seed=seed)


NEAR_TIE = 1e-4
"""Engines add up in different orders, which moves float logits by some 1e-5: of tokens that are this close to the
largest logit, the lowest is taken, so that a tie falls the same way on all of them."""


ENOUGH_CANDIDATES = (64, 1024, 16384)
"""Among so many of the likeliest ones top_p and min_p are looked for, before all are sorted."""


class Sampler:
    """Chooses tokens under fixed settings."""

    def __init__(
        self, settings: SamplingSettings, suppress: tuple[int, ...], logit_softcap: float, prompt: Iterable[int] = ()
    ) -> None:
        """Args: prompt: tokens that count as repeated when they come again."""
        self._settings = settings
        self._suppress = np.array(suppress, np.int64)
        self._logit_softcap = logit_softcap
        self._random = np.random.default_rng(settings.seed)
        self._seen = set(prompt) if settings.repetition_penalty != 1 else set()

    def choose(self, logits: Float32Array) -> int:
        """The next token, from raw (not yet soft-capped) logits [vocabulary]; the array is changed in place.

        Raises:
            PackageError: none of them can be chosen, because they are no numbers, or all are suppressed.
        """
        settings, cap = self._settings, self._logit_softcap
        if settings.repetition_penalty != 1:
            logits[:] = self._penalized(soft_cap(logits, cap))
            cap = 0.0
        logits[self._suppress] = -np.inf
        largest = logits.max()
        if not np.isfinite(largest):
            raise PackageError("the model gives no number for any token that it may say: convert the checkpoint again.")
        if settings.temperature == 0:
            # The soft cap is monotonic, so it cannot change which logit is the largest.
            token = int(np.argmax(logits >= largest - np.float32(NEAR_TIE)))
        else:
            candidates, probabilities = self._candidates(logits, cap)
            token = int(self._random.choice(candidates, p=probabilities))
        if settings.repetition_penalty != 1:
            self._seen.add(token)
        return token

    def ahead(self) -> Sampler:
        """A copy for the logits of a drafter, which are not soft-capped, with the same random numbers to come."""
        other = Sampler(replace(self._settings, repetition_penalty=1.0), (), 0.0)
        other._random.bit_generator.state = self._random.bit_generator.state
        return other

    def _penalized(self, logits: Float32Array) -> Float32Array:
        seen = np.fromiter((token for token in self._seen if token < len(logits)), np.int64)
        penalty = np.float32(self._settings.repetition_penalty)
        logits[seen] = np.where(logits[seen] < 0, logits[seen] * penalty, logits[seen] / penalty)
        return logits

    def _candidates(self, logits: Float32Array, cap: float) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and their probabilities after top-k, soft cap, temperature, top-p and min-p, likeliest first."""
        settings = self._settings
        if settings.top_k and settings.top_k < len(logits):
            return self._likeliest(logits, cap, settings.top_k, 0.0)
        if settings.top_p == 1 and settings.min_p == 0:
            weights = _weights(soft_cap(logits, cap), settings.temperature)
            return np.arange(len(logits)), weights / weights.sum()
        total = float(_weights(soft_cap(logits, cap), settings.temperature).sum())
        for count in ENOUGH_CANDIDATES:
            if count >= len(logits):
                break
            candidates, probabilities = self._likeliest(logits, cap, count, total)
            if len(candidates) < count:  # what is left out is certainly less likely
                return candidates, probabilities
        return self._likeliest(logits, cap, len(logits), total)

    def _likeliest(self, logits: Float32Array, cap: float, count: int, total: float) -> tuple[np.ndarray, np.ndarray]:
        """Candidates among that many.

        Args:
            total: sum of all weights that top_p is a share of; 0 where only these count.
        """
        candidates = np.argpartition(logits, len(logits) - count)[len(logits) - count :]
        candidates = candidates[np.argsort(-logits[candidates], kind="stable")]
        weights = _weights(soft_cap(logits[candidates], cap), self._settings.temperature)
        shares = weights / (total or weights.sum())
        # Keep a candidate while the mass before it is below top_p, so that the likeliest one always stays.
        kept = np.cumsum(shares) - shares < self._settings.top_p
        needed = int((kept & (weights >= self._settings.min_p)).sum())
        return candidates[:needed], weights[:needed] / weights[:needed].sum()


def _weights(logits: Float32Array, temperature: float) -> np.ndarray:
    """Probabilities as shares of the likeliest one's, float64."""
    # Subtracting first keeps a tiny temperature from making infinity of the largest logit.
    with np.errstate(over="ignore"):
        weights: np.ndarray = np.exp((logits.astype(np.float64) - float(logits.max())) / temperature)
    return weights


def soft_cap(logits: Float32Array, cap: float) -> Float32Array:
    """cap * tanh(logits / cap), or the logits themselves for a cap of 0."""
    if cap == 0:
        return logits
    capped: Float32Array = np.where(np.isneginf(logits), logits, cap * np.tanh(logits / cap))
    return capped
