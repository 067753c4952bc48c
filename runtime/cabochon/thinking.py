"""Thoughts: what a model writes for itself before its answer, between two control tokens.

<|channel>thought … <channel|>, as the chat template of Gemma 4 writes them:
https://ai.google.dev/gemma/docs/core/prompt-formatting-gemma4.
"""

from __future__ import annotations

from typing import Protocol

from cabochon.arrays import Float32Array
from cabochon.tokenizer import Tokenizer

BEGIN, END, NAME = "<|channel>", "<channel|>", "thought"


class TokenChooser(Protocol):
    """Chooses the next token."""

    def choose(self, logits: Float32Array) -> int:
        """From raw logits [vocabulary], which may be changed in place."""


class Thoughts:
    """Tells thoughts from the answer, token by token."""

    def __init__(self, tokenizer: Tokenizer, longest: int = 0) -> None:
        """Args: longest: tokens of all thoughts together; 0 lets the model end them."""
        self._begin, self._end = tokenizer.control_token(BEGIN), tokenizer.control_token(END)
        self._tokenizer = tokenizer
        self._stream = tokenizer.start_stream()
        self._longest = longest
        self._count = 0
        self._inside = False
        self._texts: list[str] = []

    @property
    def begin(self) -> int | None:
        """The token that begins them; None where the vocabulary has none."""
        return self._begin

    @property
    def inside(self) -> bool:
        """Whether the model thinks."""
        return self._inside

    @property
    def count(self) -> int:
        """Tokens of all of them so far, without the control tokens around them."""
        return self._count

    @property
    def text(self) -> str:
        """All of them so far."""
        texts = ("" if NAME.startswith(text) else text.removeprefix(NAME).strip() for text in self._texts)
        return "\n".join(text for text in texts if text)

    def take(self, token: int) -> bool:
        """Hear the next token; whether it belongs to the thoughts, their control tokens included."""
        if token == self._begin:
            self._inside = True
            self._stream = self._tokenizer.start_stream()
            self._texts.append("")
        elif token == self._end:
            if self._inside:
                self._texts[-1] += self._stream.finish()
            self._inside = False
        elif self._inside:
            self._count += 1
            self._texts[-1] += self._stream.push(token)
        return self._inside or token == self._end

    def end_too_long(self, chooser: TokenChooser) -> TokenChooser:
        """A chooser that takes the token that ends thoughts when there are as many as may be."""
        return _Ending(chooser, self) if self._longest and self._end is not None else chooser

    def ending(self) -> int | None:
        """The token that has to come next, if they are too long."""
        return self._end if self._inside and self._count >= self._longest else None


class _Ending:
    def __init__(self, chooser: TokenChooser, thoughts: Thoughts) -> None:
        self._chooser, self._thoughts = chooser, thoughts

    def choose(self, logits: Float32Array) -> int:
        ending = self._thoughts.ending()
        return self._chooser.choose(logits) if ending is None else ending
