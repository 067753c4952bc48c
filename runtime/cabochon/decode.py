"""The decode loop: prompt embeddings through the decoder in chunks, then one token after the other until a stop."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.backend import LONGEST_RUN, Decoder
from cabochon.embedder import Embedder, Prompt
from cabochon.errors import RequestError
from cabochon.thinking import TokenChooser


def prefill(decoder: Decoder, prompt: Prompt, position: int = 0) -> Float32Array:
    """Run a prompt chunk by chunk; returns the raw logits [vocabulary] after its last position."""
    if len(prompt) == 0:
        raise RequestError("the prompt is empty.")
    require_room(decoder, position + len(prompt))
    last: Float32Array = run_prompt(decoder, prompt, position)[-1]
    return last


def require_room(decoder: Decoder, end: int) -> None:
    """RequestError where a prompt that ends at a position leaves no room for an answer."""
    if end >= decoder.capacity:
        raise RequestError(
            f"the prompt takes {end} of {decoder.capacity} positions, which leaves no room for an answer: shorten it "
            "(a conversation: start a new one), or raise the context length if the package allows."
        )


def run_prompt(decoder: Decoder, prompt: Prompt, position: int, logits_to_keep: int = 1) -> Float32Array:
    """Run a piece of a prompt that fits, chunk by chunk; the last one gives the logits [logits_to_keep, vocabulary]."""
    logits = np.zeros((0, 0), np.float32)
    for start in range(0, len(prompt), LONGEST_RUN):
        end = start + LONGEST_RUN
        # Only this part of the prompt is embedded while it runs.
        part = prompt.part(start, end)
        kept = logits_to_keep if end >= len(prompt) else 0
        logits = decoder.run(part.inputs_embeds, part.per_layer_inputs, position + start, logits_to_keep=kept)
    return logits


def decode(
    decoder: Decoder,
    embedder: Embedder,
    sampler: TokenChooser,
    logits: Float32Array,
    position: int,
    stop_tokens: Sequence[int],
    max_tokens: int,
) -> Generator[int, None, bool]:
    """Yield tokens until a stop token (not yielded), `max_tokens`, or a full cache; return whether it was a stop.

    Args:
        logits: raw logits [vocabulary] for the first new token.
        position: of that token.
    """
    for remaining in range(max_tokens, 0, -1):
        token = sampler.choose(logits)
        if token in stop_tokens:
            return True
        yield token
        if position >= decoder.capacity or remaining == 1:
            break
        step = embedder.embed([token])
        logits = decoder.run(step.inputs_embeds, step.per_layer_inputs, position)[-1]
        position += 1
    return False
