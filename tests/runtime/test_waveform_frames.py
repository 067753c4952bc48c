from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import example, given
from hypothesis import strategies as st

from cabochon.waveform_frames import WaveformFrameParameters, cut_waveform

PUBLISHED = WaveformFrameParameters(sample_rate=16_000, frame_length=640)


@pytest.fixture(scope="module")
def extractor() -> Any:
    return transformers.Gemma4UnifiedAudioFeatureExtractor()


@given(st.integers(1, 20_000), st.integers(0, 99))
@example(640, 0)
@example(641, 0)
@example(480_000, 0)
def test_every_frame_equals_the_reference(extractor: Any, samples: int, seed: int) -> None:
    clip = (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)
    reference = extractor([clip], return_tensors="np")
    expected = reference["input_features"][0][reference["input_features_mask"][0]]
    found = cut_waveform(clip, PUBLISHED)
    assert found.dtype == np.float32
    assert found.shape == (PUBLISHED.frame_count(samples), 640)
    np.testing.assert_array_equal(found, expected)


def test_no_samples_make_no_frames() -> None:
    assert cut_waveform(np.zeros(0, np.float32), PUBLISHED).shape == (0, 640)


def test_a_waveform_of_several_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="mono"):
        cut_waveform(np.zeros((1600, 2), np.float32), PUBLISHED)


@pytest.mark.parametrize(("sample_rate", "frame_length"), [(0, 640), (16_000, 0), (16_000, -1)])
def test_impossible_frames_are_refused(sample_rate: int, frame_length: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        WaveformFrameParameters(sample_rate=sample_rate, frame_length=frame_length)
