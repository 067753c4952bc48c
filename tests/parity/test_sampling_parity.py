"""Distributions of tokens are those of transformers' processors of logits, in their order."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cabochon.sampling import Sampler, SamplingSettings, soft_cap


def expected_probabilities(logits: np.ndarray, settings: SamplingSettings, prompt: list[int], cap: float) -> np.ndarray:
    steps = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    steps.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        steps.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        steps.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        steps.append(MinPLogitsWarper(settings.min_p))
    capped = torch.from_numpy(soft_cap(logits, cap).astype(np.float64))[None]
    return torch.softmax(steps(torch.tensor([prompt]), capped), -1)[0].numpy()


@settings(max_examples=200, deadline=None)
@given(
    size=st.sampled_from([5, 63, 64, 65, 300, 3000]),
    seed=st.integers(0, 1000),
    spread=st.floats(0.1, 12),
    chosen=st.builds(
        SamplingSettings,
        temperature=st.floats(0.2, 3),
        top_k=st.sampled_from([0, 1, 4, 64]),
        top_p=st.sampled_from([0.05, 0.5, 0.95, 0.999, 1.0]),
        min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
        repetition_penalty=st.sampled_from([0.5, 1.0, 1.3]),
    ),
    cap=st.sampled_from([0.0, 30.0]),
)
def test_tokens_have_the_probabilities_that_transformers_gives_them(
    size: int, seed: int, spread: float, chosen: SamplingSettings, cap: float
) -> None:
    generator = np.random.default_rng(seed)
    logits = (generator.standard_normal(size) * spread).astype(np.float32)
    prompt = generator.integers(0, size, 7).tolist()
    expected = expected_probabilities(logits, chosen, prompt, cap)
    sampler = Sampler(chosen, (), cap, prompt)
    if chosen.repetition_penalty != 1:
        candidates, probabilities = sampler._candidates(sampler._penalized(soft_cap(logits.copy(), cap)), 0.0)
    else:
        candidates, probabilities = sampler._candidates(logits.copy(), cap)
    found = np.zeros(size)
    found[candidates] = probabilities
    # Where the mass of top_p or the share of min_p is reached to the last bit, one token more or less may stay.
    # What is so unlikely that it changes no sum of probabilities may be missing.
    differing = np.flatnonzero(((found > 0) != (expected > 0)) & (np.maximum(found, expected) > 1e-12))
    assert len(differing) <= 1
    if not len(differing):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_was_said_is_less_likely_to_come_again() -> None:
    sampler = Sampler(SamplingSettings(repetition_penalty=1.5), (), 0.0)
    logits = np.array([2.0, 2.9, -1.0], np.float32)
    assert [sampler.choose(logits.copy()) for _ in range(3)] == [1, 0, 1]
