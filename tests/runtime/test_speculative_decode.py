from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from counting_decoder import EMBEDDER, HIDDEN, VOCABULARY, CountingDecoder
from hypothesis import given
from hypothesis import strategies as st

from cabochon.backend import Guess
from cabochon.decode import decode, prefill
from cabochon.draft_length import PROBE_EVERY, DraftCounts, DraftLength
from cabochon.sampling import Sampler, SamplingSettings
from cabochon.speculative_decode import Speculation, decode_with_drafts


@dataclass
class ScriptedDrafter:
    """Guesses the right number, or the next but one where a script says so."""

    decoder: CountingDecoder
    is_right: Callable[[], bool]
    started: list[int] = field(default_factory=list)

    @property
    def hidden_states(self) -> np.ndarray:
        return np.zeros((self.decoder.logits_given[-1], HIDDEN), np.float32)

    def start(self, position: int) -> None:
        self.started.append(position)

    def guess(self, embedding: np.ndarray, hidden: np.ndarray) -> Guess:
        logits = np.zeros(VOCABULARY, np.float32)
        logits[(int(embedding[0]) + (1 if self.is_right() else 2)) % VOCABULARY] = 1
        return Guess(logits, None, hidden)


@dataclass(frozen=True)
class Outcome:
    tokens: list[int]
    stopped: bool
    runs: list[tuple[int, int]]
    counts: DraftCounts


def speculate(
    drafts: int | None,
    is_right: Callable[[], bool],
    max_tokens: int = 60,
    capacity: int = 200,
    stop_tokens: Sequence[int] = (),
) -> Outcome:
    decoder = CountingDecoder(capacity)
    logits = prefill(decoder, EMBEDDER.embed([1, 2, 3]))[None][0]
    sampler = Sampler(SamplingSettings(), (), 0.0)
    counts = DraftCounts()
    drafter = ScriptedDrafter(decoder, is_right)
    speculation = Speculation(drafter, DraftLength(drafts), counts, sampler.ahead)
    tokens = decode_with_drafts(decoder, EMBEDDER, sampler, speculation, logits, 3, stop_tokens, max_tokens)
    found, stopped = drain(tokens)
    return Outcome(found, stopped, decoder.runs[1:], counts)


def drain(tokens: object) -> tuple[list[int], bool]:
    found: list[int] = []
    while True:
        try:
            found.append(next(tokens))  # type: ignore[call-overload]
        except StopIteration as end:
            return found, end.value


def plain(max_tokens: int, capacity: int, stop_tokens: Sequence[int]) -> tuple[list[int], bool]:
    decoder = CountingDecoder(capacity)
    logits = prefill(decoder, EMBEDDER.embed([1, 2, 3]))
    sampler = Sampler(SamplingSettings(), (), 0.0)
    return drain(decode(decoder, EMBEDDER, sampler, logits, 3, stop_tokens, max_tokens))


@given(
    drafts=st.none() | st.integers(1, 8),
    script=st.lists(st.booleans(), min_size=1, max_size=12),
    max_tokens=st.integers(0, 40),
    capacity=st.integers(4, 50),
    stop=st.integers(4, 60),
)
def test_an_answer_is_that_of_plain_decoding_wherever_it_ends(
    drafts: int | None, script: list[bool], max_tokens: int, capacity: int, stop: int
) -> None:
    right = itertools.cycle(script)
    outcome = speculate(drafts, lambda: next(right), max_tokens, capacity, (stop,))
    assert (outcome.tokens, outcome.stopped) == plain(max_tokens, capacity, (stop,))
    assert all(position + count <= capacity for position, count in outcome.runs)
    assert 0 <= outcome.counts.accepted <= outcome.counts.drafted


def test_right_drafts_save_runs() -> None:
    outcome = speculate(3, lambda: True, max_tokens=41)
    assert outcome.runs == [(3 + 4 * step, 4) for step in range(10)]
    assert (outcome.counts.drafted, outcome.counts.accepted) == (30, 30)


def test_wrong_drafts_cost_no_token() -> None:
    outcome = speculate(2, lambda: False, max_tokens=10)
    assert outcome.tokens == [*range(4, 14)]
    assert outcome.counts.accepted == 0
    assert [position for position, _ in outcome.runs] == [*range(3, 12)]


def test_a_stop_token_among_the_drafts_ends_the_answer_there() -> None:
    outcome = speculate(4, lambda: True, stop_tokens=(7,))
    assert (outcome.tokens, outcome.stopped) == ([4, 5, 6], True)
    assert outcome.runs == [(3, 5)]
    assert outcome.counts.accepted == 3  # the stop token as well


def test_a_cache_that_fills_up_shortens_the_drafts() -> None:
    outcome = speculate(4, lambda: True, capacity=10)
    assert outcome.tokens == [*range(4, 12)]
    assert outcome.runs == [(3, 5), (8, 2)]


@pytest.mark.parametrize("seconds_of_a_position", [0.0, 0.9])
def test_drafts_are_as_long_as_they_pay(seconds_of_a_position: float) -> None:
    """A run of more positions costs nothing more, or almost as much again for each."""
    length = DraftLength(None)
    chosen = []
    for _ in range(200):
        count = length.choose()
        chosen.append(count)
        length.report(count, count // 2, 0.01 * count, 1 + seconds_of_a_position * count)
    settled = chosen[40:]
    if seconds_of_a_position == 0:
        assert min(settled) > 0
    else:
        assert settled.count(0) >= len(settled) - len(settled) // PROBE_EVERY - 1
        assert 1 in settled
    assert set(chosen[:15]) == {0, 1, 2, 3, 4}


def test_a_text_that_becomes_easy_to_guess_is_drafted_again() -> None:
    length = DraftLength(None)
    for _ in range(60):
        count = length.choose()
        length.report(count, 0, 0.01 * count, 1 + 0.3 * count)
    assert length.choose() == 0
    chosen = []
    for _ in range(PROBE_EVERY * 30):
        count = length.choose()
        chosen.append(count)
        length.report(count, count, 0.01 * count, 1 + 0.3 * count)
    assert chosen[-1] == 4


def test_what_a_plain_token_takes_is_reported_once_it_was_measured() -> None:
    length = DraftLength(None)
    assert length.plain_seconds == 0
    length.report(0, 0, 0.0, 0.25)
    assert length.plain_seconds == 0.25
    assert DraftLength(3).choose() == 3


VALUES = st.lists(st.floats(-3, 3, width=32), min_size=5, max_size=5)


@given(target=VALUES, drafted=VALUES, seed=st.integers(0, 2**32))
def test_a_draft_is_chosen_with_the_random_number_of_the_token_that_it_foresees(
    target: list[float], drafted: list[float], seed: int
) -> None:
    sampler = Sampler(SamplingSettings(1.0, seed=seed), (), 0.0)
    ahead = sampler.ahead()
    for _ in range(3):
        foreseen = ahead.choose(np.array(target, np.float32))
        assert sampler.choose(np.array(target, np.float32)) == foreseen
    ahead.choose(np.array(drafted, np.float32))
    # Looking ahead takes nothing from the sampler.
    other = sampler.ahead()
    assert sampler.choose(np.array(target, np.float32)) == other.choose(np.array(target, np.float32))


class ChainDecoder(CountingDecoder):
    """A Markov chain over five tokens."""

    chances = np.random.default_rng(4).dirichlet(np.ones(5), 5)

    def run(
        self, inputs_embeds: np.ndarray, per_layer_inputs: np.ndarray, position: int, logits_to_keep: int = 1
    ) -> np.ndarray:
        super().run(inputs_embeds, per_layer_inputs, position, logits_to_keep)
        tokens = inputs_embeds[len(inputs_embeds) - logits_to_keep :, 0].astype(int)
        return np.log(self.chances[tokens]).astype(np.float32)


class ChainDrafter(ScriptedDrafter):
    """Knows the chain, but blurred."""

    def guess(self, embedding: np.ndarray, hidden: np.ndarray) -> Guess:
        blurred = 0.6 * ChainDecoder.chances[int(embedding[0])] + 0.4 / 5
        order = np.array([3, 1, 4, 0, 2])
        return Guess(np.log(blurred[order]).astype(np.float32), order, hidden)


def filtered(chances: np.ndarray, settings: SamplingSettings) -> np.ndarray:
    """Probabilities after temperature, top-k and top-p."""
    shares = chances ** (1 / settings.temperature)
    order = np.argsort(-shares)[: settings.top_k or len(shares)]
    shares = shares[order] / shares[order].sum()
    kept = np.cumsum(shares) - shares < settings.top_p
    result = np.zeros(len(chances))
    result[order[kept]] = shares[kept] / shares[kept].sum()
    return result


@pytest.mark.parametrize(
    "settings", [SamplingSettings(1.0), SamplingSettings(0.7, top_k=3), SamplingSettings(1, 0, 0.8)]
)
def test_sampled_answers_have_the_distribution_of_the_model(settings: SamplingSettings) -> None:
    """Pairs of neighbours in answers of 16 tokens, against the chain itself."""
    pairs, counts = np.zeros((5, 5)), DraftCounts()
    for seed in range(700):
        seeded = replace(settings, seed=seed)
        answers = []
        for drafts in (0, 3):
            decoder = ChainDecoder(100)
            sampler = Sampler(seeded, (), 0.0)
            logits = prefill(decoder, EMBEDDER.embed([2]))
            drafter = ChainDrafter(decoder, lambda: True)
            speculation = Speculation(drafter, DraftLength(drafts), counts, sampler.ahead)
            tokens = decode_with_drafts(decoder, EMBEDDER, sampler, speculation, logits, 1, (), 16)
            answers.append(drain(tokens)[0])
        # Stronger than the same distribution: the same answer for the same seed.
        assert answers[0] == answers[1]
        np.add.at(pairs, (answers[1][:-1], answers[1][1:]), 1)
    assert 0.3 < counts.acceptance < 1
    for token, found in enumerate(pairs):
        probabilities = filtered(ChainDecoder.chances[token], settings)
        deviations = np.sqrt(probabilities * (1 - probabilities) * found.sum())
        # Five standard deviations: once in two million.
        assert (np.abs(found - probabilities * found.sum()) <= 5 * deviations + 1e-9).all()
