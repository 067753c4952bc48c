from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import example, given
from hypothesis import strategies as st

from cabochon.log_mel import LogMelParameters, LogMelStream, log_mel
from cabochon_convert.audio_frontend import DEFAULT_LOG_MEL

PUBLISHED = DEFAULT_LOG_MEL


@pytest.fixture(scope="module")
def extractor() -> Any:
    return transformers.Gemma4AudioFeatureExtractor()


def waveform(samples: int, seed: int, loudness: float) -> np.ndarray:
    return (loudness * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


# The reference pads to a multiple of 128 samples and fails where even that makes no frame.
@given(st.integers(129, 20_000), st.integers(0, 99), st.sampled_from([0.0, 1e-4, 0.1, 1.0]))
@example(160, 0, 0.1)
@example(161, 0, 0.1)
@example(320, 0, 0.1)
@example(321, 0, 0.1)
@example(480_000, 0, 0.1)
def test_every_frame_of_real_audio_equals_the_reference(
    extractor: Any, samples: int, seed: int, loudness: float
) -> None:
    clip = waveform(samples, seed, loudness)
    reference = extractor([clip], sampling_rate=16_000, return_tensors="np")
    expected = reference["input_features"][0][reference["input_features_mask"][0].astype(bool)]
    found = log_mel(clip, PUBLISHED)
    assert found.dtype == np.float32
    assert found.shape == (PUBLISHED.frame_count(samples), 128) == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@given(st.integers(0, 5000), st.integers(1, 400), st.integers(8, 400))
def test_the_frame_count_is_that_of_the_log_mel(samples: int, frame_length: int, hop_length: int) -> None:
    parameters = replace(PUBLISHED, frame_length=frame_length, hop_length=hop_length)
    count = parameters.frame_count(samples)
    assert len(log_mel(waveform(samples, 1, 0.1), parameters)) == count
    assert 0 <= count <= max(0, samples) // hop_length + 1


def test_frames_do_not_depend_on_what_follows_them() -> None:
    clip = waveform(8000, 3, 0.1)
    whole, half = log_mel(clip, PUBLISHED), log_mel(clip[:4000], PUBLISHED)
    np.testing.assert_array_equal(half, whole[: len(half)])


def test_a_clip_below_one_frame_has_no_frames_and_silence_is_the_floor() -> None:
    assert log_mel(np.zeros(100, np.float32), PUBLISHED).shape == (0, 128)
    np.testing.assert_allclose(log_mel(np.zeros(1600, np.float32), PUBLISHED), np.log(1e-3), rtol=1e-6)


def test_a_stereo_waveform_is_refused() -> None:
    with pytest.raises(ValueError, match="mono"):
        log_mel(np.zeros((1600, 2), np.float32), PUBLISHED)


@pytest.mark.parametrize(
    "change",
    [
        {"sample_rate": 0},
        {"sample_rate": -16_000},
        {"frame_length": 0},
        {"frame_length": 513},
        {"hop_length": 0},
        {"hop_length": 7},
        {"fft_length": 0},
        {"mel_bins": 0},
        {"mel_bins": 1025},
        {"min_frequency": -1.0},
        {"min_frequency": 8000.0},
        {"max_frequency": 8001.0},
        {"min_frequency": float("nan")},
        {"max_frequency": float("nan")},
        {"mel_floor": 0.0},
        {"mel_floor": -1.0},
        {"mel_floor": float("nan")},
        {"mel_floor": float("inf")},
    ],
    ids=str,
)
def test_impossible_parameters_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be positive|expected 0|shorter than|far larger"):
        LogMelParameters(**(asdict(PUBLISHED) | change))


@given(st.integers(0, 4000), st.lists(st.integers(0, 900), min_size=1, max_size=5), st.integers(0, 9))
def test_frames_of_a_stream_are_those_of_the_whole(samples: int, sizes: list[int], seed: int) -> None:
    clip = waveform(samples, seed, 0.1)
    stream, frames, position, turn = LogMelStream(PUBLISHED), [], 0, 0
    while position < samples:
        size = max(1, sizes[turn % len(sizes)])
        frames.append(stream.push(clip[position : position + size]))
        position, turn = position + size, turn + 1
    whole = log_mel(clip, PUBLISHED)
    found = np.concatenate([np.zeros((0, PUBLISHED.mel_bins), np.float32), *frames])
    assert found.shape == whole.shape
    # Sums of a matrix product depend on its number of rows.
    assert np.abs(found - whole).max(initial=0) < 1e-5
