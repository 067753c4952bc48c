"""A clip that is encoded and prefilled while it is spoken: when it ends, little is left to do before the answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.audio_model import AudioModel
from cabochon.audio_stream import AudioStream
from cabochon.backend import Decoder
from cabochon.decode import run_prompt
from cabochon.embedder import Embedder
from cabochon.errors import AudioError, RequestError

GUESSED_TOKENS = 96
"""Of a guess, which is forgotten again: sliding caches can go back some 200 positions."""


class Turn(Protocol):
    """The right to use the decoder, until another answer is started."""

    @property
    def number(self) -> int:
        """Of answers on this model."""

    def begin(self, tokens: Sequence[int]) -> None:
        """Bring the decoder to where it is after the first tokens of a prompt."""

    def held(self) -> AbstractContextManager[None]:
        """Within it nobody else uses the decoder; RequestError where another answer was started."""

    def decode(self, logits: Float32Array, position: int, max_tokens: int) -> Iterator[str]:
        """The answer that follows, piece by piece."""


@dataclass(frozen=True, slots=True)
class ClipPrompt:
    """What stands around the sound."""

    before: Sequence[int]
    """Tokens up to the first soft token."""
    after: Sequence[int]
    """Tokens behind the last one."""


class SpokenClip:
    """One clip. Push its samples as they come; then `finish` gives the answer."""

    def __init__(
        self,
        decoder: Decoder,
        embedder: Embedder,
        audio: AudioModel,
        stream: AudioStream,
        prompt: ClipPrompt,
        turn: Turn,
    ) -> None:
        self._decoder, self._embedder, self._audio, self._stream = decoder, embedder, audio, stream
        self._prompt, self._turn = prompt, turn
        self._samples = self._heard = 0
        self._waiting = np.zeros((0, 0), np.float32)
        """Embeddings that were heard, but not run yet: [tokens, hidden]."""
        self._finished = False
        self.prefill_seconds = self.encode_seconds = 0.0
        self._turn.begin(prompt.before)
        self._position = len(prompt.before)

    @property
    def samples(self) -> int:
        """That were pushed."""
        return self._samples

    @property
    def seconds(self) -> float:
        """Length of what was pushed."""
        return self._samples / self._audio.sample_rate

    @property
    def turn_number(self) -> int:
        """Of the answer among those of its model."""
        return self._turn.number

    @property
    def position(self) -> int:
        """Positions of the prompt that the decoder has run."""
        return self._position

    def push(self, samples: Float32Array) -> None:
        """Hear the next samples: float32 of any number.

        Raises:
            RequestError: another answer was started, or the clip has ended.
            AudioError: the clip is longer than the model takes.
        """
        if self._finished:
            raise RequestError("the clip has ended: start another one.")
        if self._samples + len(samples) > self._audio.max_samples:
            limit = self._audio.max_samples / self._audio.sample_rate
            raise AudioError(f"the clip is longer than {limit:.0f} s: end it at a pause.")
        self._samples += len(samples)
        self._hear(lambda: self._stream.push(samples))
        # A run that is filled up anyway is worth waiting for, as long as the clip's and the prompt's end fit into it.
        count, filled = len(self._waiting), self._decoder.shortest_run
        if count and count + self._stream.block_tokens + len(self._prompt.after) > filled:
            self._run((), max_heard=count if count < filled else count - count % filled)

    def guess(self) -> str:
        """What the clip says so far, as far as the encoder has come; it can go on afterwards."""
        after = self._prompt.after
        logits = self._run(after, logits_to_keep=1)
        text = "".join(self._turn.decode(logits, self._position, GUESSED_TOKENS - len(after)))
        self._position -= len(after)
        return text.strip()

    def finish(self) -> Float32Array:
        """End the clip; returns the logits [vocabulary] of the answer's first token.

        Raises:
            AudioError: it is too short to be heard.
        """
        self._finished = True
        self._hear(self._stream.finish)
        if self._heard == 0:
            raise AudioError(f"the sound lasts {self.seconds * 1000:.0f} ms, too short to hold speech.")
        return self._run(self._prompt.after, logits_to_keep=1)

    def _hear(self, encode: Callable[[], Float32Array]) -> None:
        started = time.perf_counter()
        embeddings = encode()
        self.encode_seconds += time.perf_counter() - started
        if len(embeddings):
            self._refuse_too_many(len(self._waiting) + len(embeddings))
            # Or what ends the clip would be known when there is enough for a run.
            with self._turn.held():
                self._waiting = np.concatenate([self._waiting, embeddings]) if len(self._waiting) else embeddings
            self._heard += len(embeddings)

    def _run(self, tokens: Sequence[int], logits_to_keep: int = 0, max_heard: int | None = None) -> Float32Array:
        """Let the decoder run what waits, then these tokens; returns the last one's logits, if they are asked for.

        Args:
            max_heard: tokens of what waits; all of them by default.
        """
        heard = self._waiting[:max_heard]
        tokens = [*[self._audio.soft_token] * len(heard), *tokens]
        self._refuse_too_many(len(tokens))
        started = time.perf_counter()
        prompt = self._embedder.embed(tokens, self._audio, heard if len(heard) else None)
        with self._turn.held():
            logits = run_prompt(self._decoder, prompt, self._position, logits_to_keep)
        self._waiting = self._waiting[len(heard) :]
        self._position += len(tokens)
        self.prefill_seconds += time.perf_counter() - started
        return logits[-1] if logits_to_keep else logits

    def _refuse_too_many(self, count: int) -> None:
        if self._position + count >= self._decoder.capacity:
            raise RequestError(
                f"the clip and its prompt take more than {self._decoder.capacity} positions: raise the context length."
            )
