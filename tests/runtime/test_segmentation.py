from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from cabochon.errors import RequestError
from cabochon.segmentation import SHORTEST_PAUSE, Segment, Segmentation, Segmenter

RATE, FRAME = 1000, 10
LONGEST = 4 * RATE
CLICK = 0.09 * RATE


class Loudness:
    """Hears speech where samples are not zero, the louder the surer."""

    frame_samples = FRAME

    def probability(self, frame: np.ndarray) -> float:
        return float(np.abs(frame).mean())


def cut(waveform: np.ndarray, settings: Segmentation, blocks: list[int], max_samples: int = LONGEST) -> list[Segment]:
    """Segments of a waveform that comes in blocks of these sizes, over and over."""
    segmenter = Segmenter(Loudness(), RATE, max_samples, settings)
    segments, position, turn = [], 0, 0
    while position < len(waveform):
        segments += segmenter.push(waveform[position : position + blocks[turn % len(blocks)]])
        position += blocks[turn % len(blocks)]
        turn += 1
    return segments + segmenter.finish()


@st.composite
def sounds(draw: st.DrawFn) -> np.ndarray:
    """Speech and silence by turns, each sample with a value of its own, so that a moved one would be seen."""
    turns = draw(st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 6000)), max_size=6))
    pieces = [np.full(count, level) for silence, speech in turns for count, level in ((silence, 0.0), (speech, 0.9))]
    waveform = np.concatenate([np.zeros(0), *pieces]).astype(np.float32)
    return waveform + np.arange(len(waveform), dtype=np.float32) * 1e-7


SETTINGS = st.builds(
    Segmentation, pause=st.sampled_from([0.1, 0.3, 0.6, 1.5]), margin=st.sampled_from([0.0, 0.05, 0.2, 1.0]),
    longest=st.sampled_from([2.0, 3.0, 30.0]),
)  # fmt: skip


@given(sounds(), SETTINGS, st.lists(st.integers(1, 5000), min_size=1, max_size=4))
def test_segments_are_pieces_of_the_sound_in_order_and_hold_all_of_its_speech(
    waveform: np.ndarray, settings: Segmentation, blocks: list[int]
) -> None:
    segments = cut(waveform, settings, blocks)
    for segment in segments:
        assert 0 < len(segment.waveform) <= min(settings.longest * RATE, LONGEST)
        assert np.array_equal(segment.waveform, waveform[segment.start : segment.end])
    assert all(one.end <= other.start for one, other in pairwise(segments))
    left_out = np.ones(len(waveform), bool)
    for segment in segments:
        left_out[segment.start : segment.end] = False
    # What is lost of speech is a click, or the edge of a frame that is mostly silent.
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (left_out & (waveform > 0.5)).astype(int), [0]])))
    assert all(end - start < CLICK + 2 * FRAME for start, end in edges.reshape(-1, 2))


@given(sounds(), SETTINGS, st.lists(st.integers(1, 5000), min_size=1, max_size=4))
def test_it_does_not_matter_how_a_sound_comes(waveform: np.ndarray, settings: Segmentation, blocks: list[int]) -> None:
    whole, parts = cut(waveform, settings, [max(1, len(waveform))]), cut(waveform, settings, blocks)
    assert [segment.start for segment in whole] == [segment.start for segment in parts]
    assert all(np.array_equal(one.waveform, other.waveform) for one, other in zip(whole, parts, strict=True))


def speech(*pieces: tuple[float, float]) -> np.ndarray:
    """Seconds and loudness of pieces that follow one another."""
    return np.concatenate([np.full(round(seconds * RATE), level, np.float32) for seconds, level in pieces])


def test_a_sound_is_cut_at_its_pauses_and_keeps_a_margin_around_speech() -> None:
    quiet = 0.001
    sound = speech((1, quiet), (1, 0.9), (0.3, quiet), (1, 0.9), (0.7, quiet), (0.5, 0.9), (1, quiet))
    segments = cut(sound, Segmentation(pause=0.5, margin=0.1), [64])
    assert [(segment.start, segment.end) for segment in segments] == [(900, 3400), (3900, 4600)]


def test_digital_silence_is_no_part_of_a_margin() -> None:
    sound = speech((1, 0), (0.05, 0.001), (1, 0.9), (0.3, 0), (1, 0.9), (0.03, 0.001), (1, 0))
    (segment,) = cut(sound, Segmentation(pause=0.5, margin=0.1), [64])
    assert (segment.start, segment.end) == (1000, 3380)


def test_speech_that_is_too_long_is_cut_where_it_is_faintest_never_in_its_first_half() -> None:
    sound = speech((1, 0.9), (0.2, 0.4), (1.5, 0.9), (0.1, 0.5), (3, 0.9))
    segments = cut(sound, Segmentation(longest=4.0, margin=0.0), [64])
    assert segments[0].end == pytest.approx(2750, abs=30)
    assert segments[1].start == segments[0].end


def test_near_its_longest_a_segment_ends_at_a_pause_that_would_not_end_a_short_one() -> None:
    gap = speech((0.3, 0))
    early = np.concatenate([speech((1.0, 0.9)), gap, speech((0.5, 0.9))])
    late = np.concatenate([speech((3.4, 0.9)), gap, speech((0.5, 0.9))])
    assert len(cut(early, Segmentation(pause=0.6), [64])) == 1
    assert len(cut(late, Segmentation(pause=0.6), [64])) == 2


def test_what_is_pending_grows_until_the_segment_ends() -> None:
    segmenter = Segmenter(Loudness(), RATE, LONGEST, Segmentation(pause=0.5, margin=0.1))
    assert (segmenter.speaking, segmenter.pending) == (False, None)
    segmenter.push(speech((1, 0.001), (0.5, 0.9)))
    assert segmenter.speaking
    assert segmenter.pending is not None
    assert (segmenter.pending.start, segmenter.pending.end) == (900, 1500)
    assert len(segmenter.push(speech((1, 0)))) == 1
    assert not segmenter.speaking


def test_a_later_start_only_moves_the_places() -> None:
    sound = speech((1, 0), (1, 0.9), (1, 0), (1, 0.9))
    later = Segmenter(Loudness(), RATE, LONGEST, Segmentation(), start=70)
    moved = later.push(sound) + later.finish()
    assert [segment.start - 70 for segment in moved] == [segment.start for segment in cut(sound, Segmentation(), [999])]


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"pause": SHORTEST_PAUSE / 2}, "pause"), ({"pause": 11.0}, "pause"), ({"margin": -0.1}, "margin"),
     ({"margin": 1.5}, "margin"), ({"longest": 1.0}, "at most 1 s"), ({"longest": float("nan")}, "nan"),
     ({"pause": float("inf")}, "inf")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(changes: dict[str, float], words: str) -> None:
    with refused(RequestError, words):
        Segmentation(**changes)
