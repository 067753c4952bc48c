"""Whose turn it is at the decoder, which has one cache and one set of buffers, and what it holds of whom."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cabochon.backend import CacheRows, Decoder
from cabochon.conversation import Conversation
from cabochon.errors import RequestError
from cabochon.held_context import HeldContext
from cabochon.kept_prefixes import KeptPrefixes


class DecoderTurns:
    """Starting an answer ends the one before it."""

    def __init__(self, decoder: Decoder, prefixes: KeptPrefixes) -> None:
        self.context = HeldContext(decoder)
        self._prefixes = prefixes
        self._conversation: Conversation | None = None
        """Whose context is held."""
        self._count = 0
        self._lock = threading.Lock()

    @contextmanager
    def begin(self, conversation: Conversation | None = None) -> Iterator[int]:
        """Begin another answer; gives its number. Within it nobody else uses the decoder."""
        with self._lock:
            self._count += 1
            if self._conversation is not conversation:
                self._change_to(conversation)
            yield self._count

    @contextmanager
    def held(self, turn: int) -> Iterator[None]:
        """Go on with an answer. Within it nobody else uses the decoder.

        Raises:
            RequestError: another one was started.
        """
        with self._lock:
            if turn != self._count:
                raise RequestError("another answer was started on this model: finish one before you start the next.")
            yield

    def run_prefix(self, tokens: Sequence[int]) -> None:
        """Bring the decoder, whose turn has begun, to where it is after the first tokens of many prompts."""
        self.context.forget()
        self._prefixes.run(tokens)

    def context_of(self, conversation: Conversation) -> tuple[list[int], CacheRows] | None:
        """A copy of what is held of a conversation."""
        with self._lock:
            return self.context.read() if self._conversation is conversation else conversation.waiting

    def _change_to(self, conversation: Conversation | None) -> None:
        if self._conversation is not None:
            self._conversation.suspend(self.context.read())
        self._conversation = conversation
        waiting = conversation.resume() if conversation else None
        if waiting:
            try:
                self.context.write(*waiting)
            except ValueError:  # from a damaged file, or of a longer context
                self.context.forget()
