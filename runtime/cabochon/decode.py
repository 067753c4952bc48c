"""The decode loop: prompt embeddings through the decoder in chunks, then one token after the other until a stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cabochon.backend import Decoder
from cabochon.errors import RequestError
from cabochon.log_mel import Float32Array
from cabochon.manifest import AudioModel
from cabochon.sampling import Sampler

PREFILL_CHUNK = 512
"""Positions run at once: bounds the memory of activations; more is not faster on a CPU."""


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


def prefill(decoder: Decoder, prompt: PromptEmbeddings, position: int = 0) -> Float32Array:
    """Run a prompt chunk by chunk; returns the raw logits [vocabulary] after its last position."""
    if len(prompt) == 0:
        raise RequestError("the prompt is empty.")
    if position + len(prompt) >= decoder.capacity:
        raise RequestError(
            f"the prompt takes {position + len(prompt)} of {decoder.capacity} positions, which leaves no room for an "
            "answer: shorten it or load the package with a larger context length."
        )
    logits = np.zeros((0, 0), np.float32)
    for start in range(0, len(prompt), PREFILL_CHUNK):
        chunk = slice(start, start + PREFILL_CHUNK)
        logits = decoder.run(prompt.inputs_embeds[chunk], prompt.per_layer_inputs[chunk], position + start)
    last: Float32Array = logits[-1]
    return last


def decode(
    decoder: Decoder,
    embedder: Embedder,
    sampler: Sampler,
    logits: Float32Array,
    position: int,
    stop_tokens: Sequence[int],
    max_tokens: int,
) -> Iterator[int]:
    """Yield tokens until a stop token (not yielded), `max_tokens`, or a full cache.

    Args:
        logits: raw logits [vocabulary] for the first new token.
        position: of that token.
    """
    for remaining in range(max_tokens, 0, -1):
        token = sampler.choose(logits)
        if token in stop_tokens:
            return
        yield token
        if position >= decoder.capacity or remaining == 1:
            return
        step = embedder.embed([token])
        logits = decoder.run(step.inputs_embeds, step.per_layer_inputs, position)[-1]
        position += 1
