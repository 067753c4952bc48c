"""What an engine must offer; one `backend_*.py` per engine implements it and nothing else imports the engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cabochon.arrays import CacheArray, Float32Array
from cabochon.errors import RequestError
from cabochon.manifest import KeyValueCache
from cabochon.thread_placement import choose_thread_count

LONGEST_RUN = 512
"""Positions that one run takes at most: bounds the memory of activations and of sliding caches, and more are not faster
on a CPU."""
# An engine starts every thread that it is told to, and dies slowly of thousands.
MAX_THREADS = 512


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How an engine is to run."""

    threads: int = 0
    """Threads of one operation; 0 means one per processor that this process may use, and has time for."""
    context_length: int = 0
    """Positions that the cache can hold; 0 means as many as the package allows."""
    pinned: bool = False
    """Whether the engine's own threads stay on one processor each (Linux)."""

    def __post_init__(self) -> None:
        if not 0 <= self.threads <= MAX_THREADS:
            raise RequestError(f"{self.threads} threads were asked for, expected 0 (automatic) to {MAX_THREADS}.")
        if self.context_length < 0:
            raise RequestError(f"a context of {self.context_length} positions was asked for, expected 0 or more.")

    @property
    def thread_count(self) -> int:
        """Threads after resolving 0."""
        if self.threads:
            return self.threads
        return choose_thread_count()


def choose_capacity(settings: EngineSettings, context_length: int) -> int:
    """Positions to make room for.

    Args:
        context_length: that the package was converted for.

    Raises:
        RequestError: more were asked for.
    """
    capacity = settings.context_length or context_length
    if capacity > context_length:
        raise RequestError(
            f"a context of {capacity} positions was asked for, but the package was converted for "
            f"{context_length}: convert it with a larger --context-length."
        )
    return capacity


def refuse_impossible_run(position: int, count: int, logits_to_keep: int, capacity: int) -> None:
    """ValueError where a decoder cannot run so many positions from this one on."""
    if count < 1 or not 0 <= logits_to_keep <= count or position < 0 or position + count > capacity:
        raise ValueError(f"positions {position} to {position + count} do not fit a cache of {capacity}")
    if count > LONGEST_RUN:
        raise ValueError(f"{count} positions in one run, expected at most {LONGEST_RUN}")


def kinds_bound_exactly(caches: Iterable[tuple[str, int]]) -> frozenset[str]:
    """Kinds of layers whose graph is given no rows of caches but those that a run can see: all have one head.

    The rows of several heads do not lie together, so that the whole buffer is bound.

    Args:
        caches: kind and heads of each.
    """
    pairs = set(caches)
    return frozenset(kind for kind, _ in pairs if all(heads == 1 for other, heads in pairs if other == kind))


@dataclass(frozen=True, slots=True)
class CacheRows:
    """What a decoder remembers of the positions before one: enough for the same engine to go on from there."""

    end: int
    """The position behind the last one."""
    rows: tuple[CacheArray, ...]
    """As they are stored: keys, then values of each of the manifest's caches, [heads, rows, head size]: of all
    positions in full layers, of the last ones that are seen from `end` on in sliding ones."""


def rows_needed(cache: KeyValueCache, end: int) -> int:
    """Rows of a cache that positions from `end` on can see."""
    return min(end, cache.window - 1) if cache.window else end


def refuse_unfitting_rows(rows: CacheRows, caches: Sequence[KeyValueCache], capacity: int) -> None:
    """ValueError where caches cannot take these rows."""
    expected = [
        ((cache.heads, rows_needed(cache, rows.end), cache.head_size), cache.storage)
        for cache in caches
        for _ in ("keys", "values")
    ]
    if not 0 < rows.end <= capacity or [(each.shape, str(each.dtype)) for each in rows.rows] != expected:
        raise ValueError(f"rows of {rows.end} positions do not fit these caches")


class Decoder(Protocol):
    """The text decoder with its key-value cache."""

    @property
    def capacity(self) -> int:
        """Positions that the cache can hold."""

    @property
    def earliest_position(self) -> int:
        """How far back a run can start: what lay before it in sliding windows is forgotten."""

    @property
    def shortest_run(self) -> int:
        """Positions that the shortest run of several is filled up to: fewer take as long. 1 where none is."""

    def run(
        self, inputs_embeds: Float32Array, per_layer_inputs: Float32Array, position: int, logits_to_keep: int = 1
    ) -> Float32Array:
        """Run some positions and remember their keys and values.

        Args:
            inputs_embeds: [positions, hidden], at most `LONGEST_RUN` positions.
            per_layer_inputs: [positions, layers * per_layer_input_size], the token-identity part.
            position: of the first row; everything before it is in the cache, anything after it is forgotten. Going back
                is possible to `earliest_position` and to 0.
            logits_to_keep: how many of the last positions to give logits for; none cost least.

        Returns:
            Raw logits [logits_to_keep, vocabulary], valid until the next run.
        """

    def read_caches(self, end: int) -> CacheRows:
        """A copy of what is remembered of the positions before `end`, from which on a run could start."""

    def write_caches(self, rows: CacheRows) -> None:
        """Remember these positions and forget all others; the next run starts at `rows.end` or at 0.

        Raises:
            ValueError: they are of another model, or more than there is room for.
        """


@dataclass(frozen=True, slots=True)
class Guess:
    """What a drafter says about the next token."""

    logits: Float32Array
    """[candidates]"""
    candidates: npt.NDArray[np.int64] | None
    """Tokens that the logits are of; None where they are all tokens, in order."""
    hidden: Float32Array
    """[hidden], for the guess after it."""


class Drafter(Protocol):
    """A small model that reads the decoder's caches and hidden states, and guesses what comes next."""

    @property
    def hidden_states(self) -> Float32Array:
        """Of the positions that the decoder's last run gave logits for: [positions, hidden], valid until the next."""

    def start(self, position: int) -> None:
        """From now on, guess what follows the token at a position, from the caches of all before it."""

    def guess(self, embedding: Float32Array, hidden: Float32Array) -> Guess:
        """The next token.

        Args:
            embedding: of the last token [hidden], scaled as for the decoder.
            hidden: the decoder's behind the position before it, or that of the last guess.
        """


class AudioEncoderStream(Protocol):
    """The audio encoder for one sound that comes piece by piece."""

    @property
    def block_frames(self) -> int:
        """Frames of a piece: pieces of another number, but the last, round differently or are not allowed."""

    def encode(self, frames: Float32Array) -> Float32Array:
        """The next frames [frames, values] to embeddings [tokens, hidden]: those of the whole sound."""


class AudioEncoder(Protocol):
    """The audio encoder with its projector, or only a projector where a model hears without an encoder."""

    def encode(self, frames: Float32Array) -> Float32Array:
        """Frames [frames, values] to embeddings [tokens, hidden]."""

    def start_stream(self) -> AudioEncoderStream | None:
        """For a new sound; None where the graph takes whole sounds only."""


class VisionEncoder(Protocol):
    """The vision encoder with its projector."""

    def encode(self, patches: Float32Array) -> Float32Array:
        """Patches of one image [rows, columns, values] to embeddings [tokens, hidden], row by row.

        The values are those of the pixels, 0 to 1: [pixel rows, pixel columns, RGB], flattened.

        Raises:
            ValueError: the model takes no image of so many patches or values.
        """


@dataclass(frozen=True, slots=True)
class Session:
    """The loaded graphs of a package."""

    decoder: Decoder
    audio_encoder: AudioEncoder | None
    library: str
    """What runs them, with its version: another one rounds differently."""
    drafter: Drafter | None = None
