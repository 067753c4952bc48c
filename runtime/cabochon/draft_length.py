"""How many tokens to draft: as many as answer fastest, by what runs were measured to take and drafts to be worth."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

from cabochon.errors import RequestError
from cabochon.manifest import DrafterModel

LONGEST_DRAFT = 8
"""Tokens; longer runs cost more than any drafter was seen to save."""
AUTOMATIC_LONGEST = 4
"""That is tried without being asked for."""
FIRST_ROUNDS = 3
"""Of each length, before costs are compared: the first one allocates."""
PROBE_EVERY = 24
"""Rounds without a draft, after which one is tried again: a text may have become easier to guess."""
_REMEMBERED_SECONDS = 9
_FORGETTING = 0.9
"""What remains of older drafts' weight with each newer one."""


class DraftLength:
    """Chooses how many tokens the next round drafts; one serves all answers of a model.

    Args:
        fixed: always so many; None measures.
        first: what is tried first, as the checkpoint recommends.
    """

    def __init__(self, fixed: int | None, first: int = 2) -> None:
        self._fixed = fixed
        longest = max(AUTOMATIC_LONGEST, min(first, LONGEST_DRAFT))
        self._lengths: tuple[int, ...] = (0, *range(1, longest + 1)) if fixed is None else (fixed,)
        start = min(max(first, 1), longest)
        # The recommended length first, then what lies around it.
        order = sorted(self._lengths[1:], key=lambda length: abs(length - start))
        self._trials: list[int] = (
            [length for length in (0, *order) for _ in range(FIRST_ROUNDS)] if fixed is None else []
        )
        self._run_seconds: dict[int, deque[float]] = {}
        self._draft_seconds: deque[float] = deque(maxlen=_REMEMBERED_SECONDS)
        self._accepted = self._judged = 0.0
        self._plain_rounds = 0

    def choose(self) -> int:
        """Tokens to draft in the next round."""
        if self._fixed is not None:
            return self._fixed
        if self._trials:
            return self._trials[0]
        best = max(self._lengths, key=self._tokens_per_second)
        if best:
            self._plain_rounds = 0
            return best
        self._plain_rounds += 1
        return 1 if self._plain_rounds % PROBE_EVERY == 0 else 0

    def report(self, drafted: int, accepted: int, draft_seconds: float, run_seconds: float) -> None:
        """What a round took and gave.

        Args:
            drafted: tokens, fewer than chosen where there was no room for more.
            accepted: of these.
            draft_seconds: that the drafter took for all of them.
            run_seconds: that the decoder took for them and the token before them.
        """
        if self._trials and self._trials[0] == drafted:
            self._trials.pop(0)
        self._run_seconds.setdefault(drafted, deque(maxlen=_REMEMBERED_SECONDS)).append(run_seconds)
        if drafted:
            self._draft_seconds.append(draft_seconds / drafted)
            # Behind the first wrong one, nothing is known about the drafts.
            judged = min(accepted + 1, drafted)
            for correct in [True] * accepted + [False] * (judged - accepted):
                self._accepted = self._accepted * _FORGETTING + correct
                self._judged = self._judged * _FORGETTING + 1

    @property
    def plain_seconds(self) -> float:
        """What a token takes without drafts; 0 where that was never measured."""
        return self._typical(self._run_seconds.get(0, ()))

    def _tokens_per_second(self, length: int) -> float:
        seconds = self._typical(self._run_seconds.get(length, ()))
        if seconds == 0:
            return 0.0
        # Each of the drafts is right by itself; a right one counts only behind right ones, and one token is the run's.
        share = self._accepted / self._judged if self._judged else 0.0
        tokens = sum(share**count for count in range(length + 1))
        return tokens / (seconds + length * self._typical(self._draft_seconds))

    @staticmethod
    def _typical(seconds: deque[float] | tuple[()]) -> float:
        return median(seconds) if seconds else 0.0


@dataclass(slots=True)
class DraftCounts:
    """What the drafts of one answer were worth; filled in while it comes."""

    drafted: int = 0
    """Tokens that the drafter guessed."""
    accepted: int = 0
    """Of these, how many were what the model chose."""
    plain_seconds: float = 0.0
    """What a token takes without drafts; 0 where that was not measured."""

    @property
    def acceptance(self) -> float:
        """Share of the drafts that were accepted; 0 without any."""
        return self.accepted / self.drafted if self.drafted else 0.0


def choose_draft_length(drafter: DrafterModel | None, drafts: int | None) -> DraftLength | None:
    """How long the drafts of a package's drafter are to be; None decodes without.

    Args:
        drafter: None where there is none.
        drafts: that were asked for; None finds out what is fastest.

    Raises:
        RequestError: there is no drafter, or so many are not drafted.
    """
    if drafts is not None and not 0 <= drafts <= LONGEST_DRAFT:
        raise RequestError(f"{drafts} drafts were asked for, expected 0 (none) to {LONGEST_DRAFT}.")
    if drafts and drafter is None:
        raise RequestError(
            "the package has no drafter: convert the checkpoint again with --drafter, or ask for no drafts."
        )
    if drafter is None or drafts == 0:
        return None
    return DraftLength(drafts, drafter.recommended_drafts or 2)
