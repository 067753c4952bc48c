"""Images, videos and sounds that an encoder has already turned into embeddings.

A conversation goes on with these: it needs neither files nor pixels again, and can be saved without them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cabochon.arrays import Float32Array


@dataclass(frozen=True, slots=True, eq=False)
class Perceived:
    """An image, a frame of a video, or a sound."""

    embeddings: Float32Array
    """[tokens, hidden]"""
    mark: int
    """Below 0; stands for its tokens among others, and nothing else has the same."""

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 2 or len(self.embeddings) == 0 or self.embeddings.dtype != np.float32:
            raise ValueError(f"embeddings are {self.embeddings.dtype} of shape {list(self.embeddings.shape)}")
        if self.mark >= 0:
            raise ValueError(f"the mark is {self.mark}, expected a negative number")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Perceived) and self.mark == other.mark

    def __hash__(self) -> int:
        return hash(self.mark)

    @property
    def tokens(self) -> int:
        """Places that it takes in a prompt."""
        return len(self.embeddings)


@dataclass(frozen=True, slots=True)
class PerceivedVideo:
    """Frames, and when each was seen."""

    frames: tuple[Perceived, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.frames or len(self.frames) != len(self.seconds):
            raise ValueError(f"a video of {len(self.frames)} frames at {len(self.seconds)} times")


def mark_of(kind: str, values: np.ndarray) -> int:
    """What tells an image or a sound from all others: 56 bits of its hash, below 0 as no token is.

    Args:
        kind: images and sounds of the same bytes differ.
        values: pixels or samples.
    """
    digest = hashlib.sha256(f"{kind} {values.shape}".encode() + values.tobytes()).digest()
    return -1 - int.from_bytes(digest[:7], "big")


def join_embeddings(perceived: Iterable[Perceived]) -> Float32Array | None:
    """All embeddings [tokens, hidden], one behind the other; None where there is nothing."""
    parts = [each.embeddings for each in perceived]
    return np.concatenate(parts) if parts else None


def join_marks(perceived: Iterable[Perceived]) -> tuple[int, ...]:
    """The mark of every token."""
    return tuple(each.mark for each in perceived for _ in range(each.tokens))
