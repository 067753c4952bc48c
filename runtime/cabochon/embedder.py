"""Tokens and embeddings of audio and images to what the decoder takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

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


@dataclass(frozen=True, slots=True)
class Embedder:
    """The two embedding tables of a model."""

    tokens: Rows
    per_layer: Rows | None
    pad_token: int

    def embed(
        self,
        tokens: Sequence[int],
        audio: AudioModel | None = None,
        audio_embeddings: Float32Array | None = None,
        vision: VisionModel | None = None,
        image_embeddings: Float32Array | None = None,
    ) -> PromptEmbeddings:
        """Look tokens up and splice embeddings of audio and images into the places of their soft tokens.

        Like the reference, a soft token is looked up as the pad token in both tables before it is replaced.
        """
        media = [
            _places(tokens, audio.soft_token if audio else None, audio_embeddings, "audio", "the clip has"),
            _places(tokens, vision.soft_token if vision else None, image_embeddings, "image", "the images have"),
        ]
        soft_tokens = {part.soft_token for part in (audio, vision) if part is not None}
        plain = [self.pad_token if token in soft_tokens else token for token in tokens]
        inputs_embeds = self.tokens.look_up(plain)
        per_layer_inputs = self.per_layer.look_up(plain) if self.per_layer else np.zeros((len(plain), 0), np.float32)
        for places, embeddings in media:
            if embeddings is not None:
                inputs_embeds[places] = embeddings
        return PromptEmbeddings(inputs_embeds, per_layer_inputs)


def _places(
    tokens: Sequence[int], soft_token: int | None, embeddings: Float32Array | None, kind: str, owner: str
) -> tuple[list[int], Float32Array | None]:
    """Where embeddings go, with them.

    Raises:
        RequestError: there are more or fewer places than embeddings.
    """
    places = [index for index, token in enumerate(tokens) if token == soft_token]
    count = 0 if embeddings is None else len(embeddings)
    if len(places) != count:
        raise RequestError(f"the prompt has {len(places)} places for {kind}, but {owner} {count} {kind} tokens.")
    return places, embeddings


def open_embedder(package: Package, engine: str) -> Embedder:
    """The embedding tables that a package has for an engine."""
    tables = package.manifest.engines[engine]
    per_layer = tables.per_layer_embeddings
    return Embedder(
        EmbeddingRows(package.folder, tables.token_embeddings),
        EmbeddingRows(package.folder, per_layer) if per_layer else None,
        package.manifest.pad_token,
    )
