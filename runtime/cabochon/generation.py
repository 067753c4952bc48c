"""How an answer is to be written: which tokens are chosen, and where it ends."""

from __future__ import annotations

from dataclasses import dataclass

from cabochon.errors import RequestError
from cabochon.sampling import SamplingSettings
from cabochon.stop_strings import StopStrings
from cabochon.written_form import FREE, WrittenForm

GREEDY = SamplingSettings()


@dataclass(frozen=True, slots=True)
class Generation:
    """What a call wants.

    Raises:
        RequestError: it is impossible.
    """

    sampling: SamplingSettings = GREEDY
    max_tokens: int = 1024
    """Longest answer, thoughts included."""
    stop: tuple[str, ...] = ()
    """Texts at which the answer ends; they are no part of it."""
    thinking: bool | int = False
    """Whether the model may think before it answers; a number is how many tokens its thoughts may take."""
    form: WrittenForm = FREE
    """What the answer keeps to, and which tools it may call."""

    def __post_init__(self) -> None:
        if not isinstance(self.max_tokens, int) or self.max_tokens < 1:
            raise RequestError(
                f"an answer of at most {self.max_tokens!r} tokens was asked for, expected a positive number."
            )
        if not isinstance(self.thinking, bool) and self.thinking < 1:
            raise RequestError(
                f"thoughts of at most {self.thinking} tokens were asked for, expected True, False or a positive number."
            )
        StopStrings(self.stop)

    @property
    def longest_thoughts(self) -> int:
        """Tokens; 0 lets the model end them."""
        return 0 if isinstance(self.thinking, bool) else self.thinking
