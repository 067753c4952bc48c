"""Tokens and audio embeddings to what the decoder takes."""

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
        self, tokens: Sequence[int], audio: AudioModel | None = None, audio_embeddings: Float32Array | None = None
    ) -> PromptEmbeddings:
        """Look tokens up and splice audio embeddings into the places of the soft tokens.

        Like the reference, a soft token is looked up as the pad token in both tables before it is replaced.
        """
        soft_token = audio.soft_token if audio else None
        places = [index for index, token in enumerate(tokens) if token == soft_token]
        count = 0 if audio_embeddings is None else len(audio_embeddings)
        if len(places) != count:
            raise RequestError(f"the prompt has {len(places)} places for audio, but the clip has {count} audio tokens.")
        plain = [self.pad_token if token == soft_token else token for token in tokens]
        inputs_embeds = self.tokens.look_up(plain)
        per_layer_inputs = self.per_layer.look_up(plain) if self.per_layer else np.zeros((len(plain), 0), np.float32)
        if audio_embeddings is not None:
            inputs_embeds[places] = audio_embeddings
        return PromptEmbeddings(inputs_embeds, per_layer_inputs)


def open_embedder(package: Package, engine: str) -> Embedder:
    """The embedding tables that a package has for an engine."""
    tables = package.manifest.engines[engine]
    per_layer = tables.per_layer_embeddings
    return Embedder(
        EmbeddingRows(package.folder, tables.token_embeddings),
        EmbeddingRows(package.folder, per_layer) if per_layer else None,
        package.manifest.pad_token,
    )
