"""The decode loop with a drafter: it guesses some tokens, and the decoder verifies all of them in one run.

Every token is chosen as without drafts, by the same chooser from the decoder's own logits, in order; a draft only saves
a run where it is what was chosen. So an answer is that of `decode`, token for token, also with repetition penalties or
grammars, and sampled with a seed, too: the distribution is the decoder's. The drafter chooses with a copy of the
sampler that has the same random numbers to come, so that likely drafts are met where it is sampled as well.

What can differ is how a run of several positions is rounded. Packages of floating point were never seen to give another
answer; where activations are rounded to 8 bits, a choice between almost equally likely tokens may fall otherwise (one
answer in 200 of models/tiny to random tokens).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.backend import Decoder, Drafter, Guess
from cabochon.draft_length import DraftCounts, DraftLength
from cabochon.embedder import Embedder
from cabochon.thinking import TokenChooser


@dataclass(frozen=True, slots=True)
class Speculation:
    """What drafts one answer."""

    drafter: Drafter
    length: DraftLength
    counts: DraftCounts
    guesser: Callable[[], TokenChooser]
    """Gives what chooses from the drafter's logits in the round that begins."""


def decode_with_drafts(
    decoder: Decoder,
    embedder: Embedder,
    chooser: TokenChooser,
    speculation: Speculation,
    logits: Float32Array,
    position: int,
    stop_tokens: Sequence[int],
    max_tokens: int,
) -> Generator[int, None, bool]:
    """Like `cabochon.decode.decode`; the decoder's last run must be the one that gave the logits."""
    hidden = speculation.drafter.hidden_states[-1].copy()
    token = chooser.choose(logits)
    remaining = max_tokens
    while remaining > 0:
        if token in stop_tokens:
            return True
        yield token
        remaining -= 1
        if position >= decoder.capacity or remaining == 0:
            break
        longest = min(remaining - 1, decoder.capacity - position - 1)
        count = min(speculation.length.choose(), longest)
        started = time.perf_counter()
        drafts = _draft(embedder, speculation, token, hidden, position, count)
        drafted = time.perf_counter()
        step = embedder.embed([token, *drafts])
        rows = decoder.run(step.inputs_embeds, step.per_layer_inputs, position, count + 1)
        hidden_states = speculation.drafter.hidden_states
        finished = time.perf_counter()
        accepted = 0
        token = chooser.choose(rows[0])
        while accepted < count and token == drafts[accepted] and token not in stop_tokens:
            yield token
            accepted += 1
            remaining -= 1
            token = chooser.choose(rows[accepted])
        found = accepted + (accepted < count and token == drafts[accepted])  # a stop token that was foreseen
        speculation.counts.drafted += count
        speculation.counts.accepted += found
        speculation.length.report(count, found, drafted - started, finished - drafted)
        speculation.counts.plain_seconds = speculation.length.plain_seconds
        hidden = hidden_states[accepted].copy()
        position += accepted + 1
    return False


def _draft(
    embedder: Embedder, speculation: Speculation, token: int, hidden: Float32Array, position: int, count: int
) -> list[int]:
    """What could follow a token at a position; all guesses are made as if from there."""
    drafts: list[int] = []
    if count:
        speculation.drafter.start(position)
        guesser = speculation.guesser()
    for _ in range(count):
        guess = speculation.drafter.guess(embedder.tokens.look_up([token])[0], hidden)
        token = _choose(guesser, guess)
        drafts.append(token)
        hidden = guess.hidden
    return drafts


def _choose(guesser: TokenChooser, guess: Guess) -> int:
    if guess.candidates is None:
        return guesser.choose(guess.logits)
    # In the vocabulary's order, or a random number would stand for another token than among all.
    order = np.argsort(guess.candidates)
    return int(guess.candidates[order[guesser.choose(guess.logits[order])]])
