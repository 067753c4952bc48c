"""Which tokens the decoder holds, position by position: a prompt that begins alike need not be run again."""

from __future__ import annotations

from collections.abc import Sequence

from cabochon.backend import CacheRows, Decoder


class HeldContext:
    """As far as it is known; what holds sounds or images is not."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._tokens: list[int] | None = None
        self._last: int | None = None
        """Chosen, but perhaps not run."""

    def forget(self) -> None:
        """The decoder is used for something else."""
        self._tokens = self._last = None

    def keep(self, tokens: Sequence[int]) -> int:
        """Keep what a prompt of these tokens begins with; returns from which position on it has to be run."""
        held = self._tokens or []
        pairs = enumerate(zip(held, tokens, strict=False))
        common = next((place for place, (one, other) in pairs if one != other), min(len(held), len(tokens)))
        # The last position is run in any case, for its logits.
        start = min(common, len(tokens) - 1)
        start = start if start >= self._decoder.earliest_position else 0
        self._tokens, self._last = held[:start], None
        return start

    def was_run(self, tokens: Sequence[int]) -> None:
        """A prompt was run to its end."""
        self._tokens = list(tokens)

    def chose(self, token: int | None) -> None:
        """A token was chosen, for which the one before it had to be run; None: the answer has ended."""
        if self._tokens is not None and self._last is not None:
            self._tokens.append(self._last)
        self._last = token

    def read(self) -> tuple[list[int], CacheRows] | None:
        """A copy of it, if there is anything."""
        if not self._tokens:
            return None
        return list(self._tokens), self._decoder.read_caches(len(self._tokens))

    def write(self, tokens: Sequence[int], rows: CacheRows) -> None:
        """Put it into the decoder; ValueError where it does not fit."""
        if len(tokens) != rows.end:
            raise ValueError("other rows than tokens")
        self.forget()
        self._decoder.write_caches(rows)
        self.was_run(tokens)
