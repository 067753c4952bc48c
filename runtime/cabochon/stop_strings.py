"""Texts at which an answer ends, wherever its tokens were cut."""

from __future__ import annotations

from collections.abc import Sequence

from cabochon.errors import RequestError


class StopStrings:
    """Lets text through up to the first of some strings, which is left out itself."""

    def __init__(self, strings: Sequence[str]) -> None:
        if isinstance(strings, str) or not all(isinstance(each, str) and each for each in strings):
            raise RequestError("the stop strings are no list of texts that are not empty.")
        self._strings = tuple(strings)
        self._held = ""
        self.found = False
        """Whether the answer has ended."""

    def push(self, text: str) -> str:
        """The next text; returns what cannot be the beginning of a stop string."""
        if self.found:
            return ""
        self._held += text
        places = [place for each in self._strings if (place := self._held.find(each)) >= 0]
        if places:
            self.found = True
            text, self._held = self._held[: min(places)], ""
            return text
        return self._release(max((_overlap(self._held, each) for each in self._strings), default=0))

    def finish(self) -> str:
        """The text that is still held back when the answer has ended otherwise."""
        return self._release(0)

    def _release(self, kept: int) -> str:
        length = len(self._held) - kept
        text, self._held = self._held[:length], self._held[length:]
        return text


def _overlap(text: str, string: str) -> int:
    """How much of the end of a text is the beginning of a string."""
    return next(count for count in range(min(len(text), len(string) - 1), -1, -1) if text.endswith(string[:count]))
