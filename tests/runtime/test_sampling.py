from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from refusals import refused

from cabochon.errors import PackageError
from cabochon.sampling import NEAR_TIE, Sampler, SamplingSettings, soft_cap

LOGITS = arrays(np.float32, st.integers(1, 60), elements=st.floats(-80, 80, width=32))
TEMPERATURES = st.floats(0.01, 5)


def choose_often(logits: np.ndarray, settings: SamplingSettings, count: int = 200, cap: float = 0.0) -> list[int]:
    sampler = Sampler(settings, (), cap)
    return [sampler.choose(logits.copy()) for _ in range(count)]


def probabilities_of(logits: np.ndarray, temperature: float) -> np.ndarray:
    shifted = (logits.astype(np.float64) - logits.max()) / temperature
    probabilities: np.ndarray = np.exp(shifted) / np.exp(shifted).sum()
    return probabilities


@given(LOGITS, st.sampled_from([0.0, 30.0]))
def test_greedy_takes_the_likeliest_token(logits: np.ndarray, cap: float) -> None:
    chosen = Sampler(SamplingSettings(), (), cap).choose(logits.copy())
    assert logits.max() - logits[chosen] <= NEAR_TIE
    assert not (logits[:chosen] >= logits.max() - np.float32(NEAR_TIE)).any()


def test_a_near_tie_falls_to_the_lowest_token_whichever_is_ahead() -> None:
    sampler = Sampler(SamplingSettings(), (), 0.0)
    for ahead in (3, 7):
        logits = np.full(10, -5, np.float32)
        logits[[3, 7]] = 20
        logits[ahead] += NEAR_TIE / 4
        assert sampler.choose(logits) == 3
    logits[7] += 10 * NEAR_TIE
    assert sampler.choose(logits) == 7


@given(LOGITS, st.floats(0, 5), st.data())
def test_a_suppressed_token_never_comes(logits: np.ndarray, temperature: float, data: st.DataObject) -> None:
    tokens = st.integers(0, len(logits) - 1)
    suppressed = data.draw(st.lists(tokens, unique=True, max_size=len(logits) - 1))
    sampler = Sampler(SamplingSettings(temperature=temperature, seed=1), tuple(suppressed), 30.0)
    assert all(sampler.choose(logits.copy()) not in suppressed for _ in range(20))


@given(LOGITS, TEMPERATURES, st.integers(1, 10))
def test_top_k_chooses_among_the_k_likeliest(logits: np.ndarray, temperature: float, top_k: int) -> None:
    kth = np.sort(logits)[::-1][: min(top_k, len(logits))][-1]
    chosen = choose_often(logits, SamplingSettings(temperature=temperature, top_k=top_k, seed=1), 30)
    assert all(logits[token] >= kth for token in chosen)
    assert len(set(chosen)) <= top_k


@given(LOGITS, TEMPERATURES, st.floats(0.01, 1))
def test_top_p_chooses_among_the_fewest_tokens_that_hold_the_mass(
    logits: np.ndarray, temperature: float, top_p: float
) -> None:
    probabilities = probabilities_of(logits, temperature)
    for token in choose_often(logits, SamplingSettings(temperature=temperature, top_p=top_p, seed=1), 30):
        likelier = probabilities[probabilities > probabilities[token]].sum()
        assert likelier < top_p + 1e-6


@given(LOGITS, TEMPERATURES)
def test_the_likeliest_token_stays_whatever_top_p_is(logits: np.ndarray, temperature: float) -> None:
    settings = SamplingSettings(temperature=temperature, top_p=1e-12, seed=1)
    assert {logits[token] for token in choose_often(logits, settings, 10)} == {logits.max()}


@given(LOGITS, st.floats(1e-300, 1e-6))
def test_a_temperature_near_zero_is_greedy(logits: np.ndarray, temperature: float) -> None:
    distinct = np.unique(np.round(logits, 2))
    chosen = choose_often(distinct, SamplingSettings(temperature=temperature, seed=1), 5)
    assert {distinct[token] for token in chosen} == {distinct.max()}


@given(LOGITS, TEMPERATURES, st.integers(0, 1 << 64))
def test_the_same_seed_gives_the_same_tokens(logits: np.ndarray, temperature: float, seed: int) -> None:
    settings = SamplingSettings(temperature=temperature, top_k=20, top_p=0.9, seed=seed)
    assert choose_often(logits, settings, 10) == choose_often(logits, settings, 10)


def test_without_a_seed_the_tokens_differ() -> None:
    assert choose_often(np.zeros(1000, np.float32), SamplingSettings(temperature=1.0), 20) != choose_often(
        np.zeros(1000, np.float32), SamplingSettings(temperature=1.0), 20
    )


def test_tokens_come_as_often_as_the_soft_capped_logits_say() -> None:
    logits = np.array([0.0, 5.0, 20.0, 60.0, 61.0], np.float32)
    chosen = choose_often(logits, SamplingSettings(temperature=2.0, seed=3), 20_000, cap=10.0)
    expected = probabilities_of(10 * np.tanh(logits / 10), 2.0)
    np.testing.assert_allclose(np.bincount(chosen, minlength=5) / len(chosen), expected, atol=0.015)


@given(LOGITS, st.floats(0.5, 100))
def test_the_soft_cap_bounds_logits_and_keeps_their_order(logits: np.ndarray, cap: float) -> None:
    capped = soft_cap(logits, cap)
    assert np.abs(capped).max() <= np.float32(cap) * (1 + 1e-6)
    assert (np.diff(capped[np.argsort(logits)]) >= 0).all()
    np.testing.assert_array_equal(soft_cap(logits, 0), logits)


@pytest.mark.parametrize(
    "change",
    [{"temperature": -0.1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_p": float("nan")}, {"seed": -1}],
    ids=str,
)
def test_impossible_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected temperature"):
        SamplingSettings(**change)


def test_a_temperature_that_is_no_number_is_refused() -> None:
    for temperature in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="expected temperature"):
            SamplingSettings(temperature=temperature)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logits", [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf]], ids=str)
def test_logits_of_which_none_can_be_chosen_are_told_about_in_one_sentence(
    logits: list[float], temperature: float
) -> None:
    with refused(PackageError, "no number for any token"):
        Sampler(SamplingSettings(temperature=temperature), (), 0.0).choose(np.array(logits, np.float32))


def test_a_model_that_suppresses_everything_says_so() -> None:
    with refused(PackageError, "no number for any token"):
        Sampler(SamplingSettings(), (0, 1, 2), 30.0).choose(np.zeros(3, np.float32))
