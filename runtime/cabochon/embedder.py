"""Tokens and embeddings of audio and images to what the decoder takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cabochon.arrays import Float32Array
from cabochon.audio_model import AudioModel
from cabochon.embedding_table import EmbeddingRows
from cabochon.errors import RequestError
from cabochon.package import Package
from cabochon.vision_model import VisionModel


class Rows(Protocol):
    """Embedding lookup: tokens to float32 [tokens, columns]."""

    def look_up(self, tokens: Sequence[int]) -> Float32Array:
        """Scaled rows of some tokens."""


@dataclass(frozen=True, slots=True)
class PromptEmbeddings:
    """A prompt as the decoder takes it."""

    inputs_embeds: Float32Array
    """[positions, hidden]"""
    per_layer_inputs: Float32Array
    """[positions, layers * per_layer_input_size]"""

    def __len__(self) -> int:
        return len(self.inputs_embeds)

    def part(self, start: int, end: int) -> PromptEmbeddings:
        """The positions from `start` to before `end`."""
        return PromptEmbeddings(self.inputs_embeds[start:end], self.per_layer_inputs[start:end])


class Prompt(Protocol):
    """A prompt of which no more than one run need be embedded at a time: E2B takes 42 kB a position."""

    def __len__(self) -> int:
        """Positions."""

    def part(self, start: int, end: int) -> PromptEmbeddings:
        """The positions from `start` to before `end`, or to the last one, as the decoder takes them."""


@dataclass(frozen=True, slots=True)
class _Media:
    """Embeddings of all sounds, or of all images, and where they go."""

    places: npt.NDArray[np.int64]
    """Positions, in order."""
    embeddings: Float32Array | None
    """[places, hidden]; None where there are none."""

    def splice(self, inputs_embeds: Float32Array, start: int) -> None:
        """Put what belongs there into the rows of the positions from `start` on."""
        if self.embeddings is None:
            return
        first, last = np.searchsorted(self.places, (start, start + len(inputs_embeds)))
        inputs_embeds[self.places[first:last] - start] = self.embeddings[first:last]


@dataclass(frozen=True, slots=True)
class _WrittenPrompt:
    """See `Embedder.prepare`."""

    embedder: Embedder
    tokens: Sequence[int]
    """With padding in the places of media."""
    media: tuple[_Media, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, start: int, end: int) -> PromptEmbeddings:
        """See `Prompt.part`."""
        tokens, tables = self.tokens[start:end], self.embedder
        inputs_embeds = tables.tokens.look_up(tokens)
        without = np.zeros((len(tokens), 0), np.float32)
        per_layer_inputs = tables.per_layer.look_up(tokens) if tables.per_layer else without
        for each in self.media:
            each.splice(inputs_embeds, start)
        return PromptEmbeddings(inputs_embeds, per_layer_inputs)


@dataclass(frozen=True, slots=True)
class Embedder:
    """The two embedding tables of a model."""

    tokens: Rows
    per_layer: Rows | None
    pad_token: int

    def prepare(
        self,
        tokens: Sequence[int],
        audio: AudioModel | None = None,
        audio_embeddings: Float32Array | None = None,
        vision: VisionModel | None = None,
        image_embeddings: Float32Array | None = None,
    ) -> Prompt:
        """A prompt whose tokens are looked up part by part, with embeddings of audio and images in the places of their
        soft tokens.

        Like the reference, a soft token is looked up as the pad token in both tables before it is replaced.

        Raises:
            RequestError: there are more or fewer places than embeddings.
        """
        media = (
            _find_places(tokens, audio.soft_token if audio else None, audio_embeddings, "audio", "the clip has"),
            _find_places(tokens, vision.soft_token if vision else None, image_embeddings, "image", "the images have"),
        )
        soft_tokens = {part.soft_token for part in (audio, vision) if part is not None}
        plain = [self.pad_token if token in soft_tokens else token for token in tokens]
        return _WrittenPrompt(self, plain, media)

    def embed(
        self, tokens: Sequence[int], audio: AudioModel | None = None, audio_embeddings: Float32Array | None = None
    ) -> PromptEmbeddings:
        """The same at once, for a few tokens."""
        return self.prepare(tokens, audio, audio_embeddings).part(0, len(tokens))


def _find_places(
    tokens: Sequence[int], soft_token: int | None, embeddings: Float32Array | None, kind: str, owner: str
) -> _Media:
    places = np.array([index for index, token in enumerate(tokens) if token == soft_token], np.int64)
    count = 0 if embeddings is None else len(embeddings)
    if len(places) != count:
        raise RequestError(f"the prompt has {len(places)} places for {kind}, but {owner} {count} {kind} tokens.")
    return _Media(places, embeddings)


def open_embedder(package: Package, engine: str) -> Embedder:
    """The embedding tables that a package has for an engine."""
    tables = package.manifest.engines[engine]
    per_layer = tables.per_layer_embeddings
    return Embedder(
        EmbeddingRows(package.path, tables.token_embeddings),
        EmbeddingRows(package.path, per_layer) if per_layer else None,
        package.manifest.pad_token,
    )
