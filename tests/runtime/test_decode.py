from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from conftest import GOLDEN_MANIFEST
from counting_decoder import EMBEDDER, HIDDEN, PAD, WIDTH, Counted, CountingDecoder
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from cabochon.audio_model import AudioModel
from cabochon.backend import LONGEST_RUN
from cabochon.decode import decode, prefill
from cabochon.embedder import Embedder, PromptEmbeddings
from cabochon.errors import RequestError
from cabochon.manifest_file import manifest_from_text
from cabochon.sampling import Sampler, SamplingSettings

STOP = 50


@pytest.fixture(scope="module")
def audio() -> AudioModel:
    golden = manifest_from_text(GOLDEN_MANIFEST.read_text(encoding="utf-8"), "golden").audio
    assert golden is not None
    return golden


def answer(
    decoder: CountingDecoder, prompt: Sequence[int], max_tokens: int = 1000, stop_tokens: tuple[int, ...] = (STOP,)
) -> list[int]:
    logits = prefill(decoder, EMBEDDER.embed(prompt))
    sampler = Sampler(SamplingSettings(), (), 0.0)
    return list(decode(decoder, EMBEDDER, sampler, logits, len(prompt), stop_tokens, max_tokens))


@given(st.integers(1, 3 * LONGEST_RUN), st.integers(0, 40))
def test_a_prompt_runs_in_chunks_that_cover_it_once_and_in_order(length: int, position: int) -> None:
    decoder = CountingDecoder(10_000)
    logits = prefill(decoder, EMBEDDER.embed([7] * length), position)
    assert [place for start, count in decoder.runs for place in range(start, start + count)] == [
        *range(position, position + length)
    ]
    assert max(count for _, count in decoder.runs) <= LONGEST_RUN == 512
    assert len(decoder.runs) == -(-length // LONGEST_RUN)
    assert decoder.logits_given == [0] * (len(decoder.runs) - 1) + [1]
    assert int(logits.argmax()) == 8


def test_an_answer_ends_before_the_stop_token() -> None:
    decoder = CountingDecoder(1000)
    assert answer(decoder, [3, 45]) == [46, 47, 48, 49]
    assert decoder.runs == [(0, 2), (2, 1), (3, 1), (4, 1), (5, 1)]


@given(st.integers(1, 30))
def test_an_answer_has_no_more_than_max_tokens_and_runs_nothing_in_vain(max_tokens: int) -> None:
    decoder = CountingDecoder(1000)
    assert answer(decoder, [1], max_tokens, stop_tokens=()) == [*range(2, 2 + max_tokens)]
    assert len(decoder.runs) == max_tokens


@given(st.integers(2, 40))
def test_an_answer_ends_when_the_cache_is_full(capacity: int) -> None:
    decoder = CountingDecoder(capacity)
    tokens = answer(decoder, [1], stop_tokens=())
    assert len(tokens) == capacity
    assert decoder.runs[-1] == (capacity - 1, 1)


def test_the_first_token_may_already_stop() -> None:
    assert answer(CountingDecoder(10), [STOP - 1]) == []
    assert answer(CountingDecoder(10), [1], max_tokens=0) == []


@pytest.mark.parametrize("length", [10, 11, 5000])
def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused_unrun(length: int) -> None:
    decoder = CountingDecoder(10)
    with refused(RequestError, str(length), "of 10 positions"):
        prefill(decoder, EMBEDDER.embed([1] * length))
    with refused(RequestError, "of 10 positions"):
        prefill(decoder, EMBEDDER.embed([1, 1]), position=8)
    assert decoder.runs == []


def test_an_empty_prompt_is_refused() -> None:
    with refused(RequestError, "empty"):
        prefill(CountingDecoder(10), EMBEDDER.embed([]))


def test_audio_embeddings_take_the_places_of_the_soft_tokens(audio: AudioModel) -> None:
    clip = np.arange(2 * HIDDEN, dtype=np.float32).reshape(2, HIDDEN) + 1000
    tokens = [9, audio.begin_token, audio.soft_token, audio.soft_token, audio.end_token]
    prompt: PromptEmbeddings = EMBEDDER.embed(tokens, audio, clip)
    np.testing.assert_array_equal(prompt.inputs_embeds[2:4], clip)
    assert prompt.inputs_embeds[[0, 1, 4], 0].tolist() == [9, audio.begin_token, audio.end_token]
    assert prompt.per_layer_inputs[:, 0].tolist() == [9, audio.begin_token, PAD, PAD, audio.end_token]


class WatchedRows(Counted):
    """Notes how many rows are asked for at once."""

    def __init__(self, columns: int) -> None:
        super().__init__(columns)
        self.asked: list[int] = []

    def look_up(self, tokens: Sequence[int]) -> np.ndarray:
        self.asked.append(len(tokens))
        return super().look_up(tokens)


class RememberingDecoder(CountingDecoder):
    """Keeps all rows that it was run on."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.rows: list[tuple[np.ndarray, np.ndarray]] = []

    def run(
        self, inputs_embeds: np.ndarray, per_layer_inputs: np.ndarray, position: int, logits_to_keep: int = 1
    ) -> np.ndarray:
        self.rows.append((inputs_embeds.copy(), per_layer_inputs.copy()))
        inputs_embeds = np.zeros_like(inputs_embeds)  # embeddings of media count nothing
        return super().run(inputs_embeds, per_layer_inputs, position, logits_to_keep)


def test_no_more_of_a_prompt_is_embedded_at_once_than_is_run_at_once() -> None:
    watched = WatchedRows(HIDDEN), WatchedRows(WIDTH)
    decoder = CountingDecoder(10_000)
    prefill(decoder, Embedder(*watched, PAD).prepare([7] * 5000))
    assert sum(count for _, count in decoder.runs) == 5000
    for rows in watched:
        assert rows.asked == [count for _, count in decoder.runs]


@given(st.data())
def test_media_fall_into_their_places_wherever_a_prompt_is_parted(data: st.DataObject) -> None:
    golden = manifest_from_text(GOLDEN_MANIFEST.read_text(encoding="utf-8"), "golden")
    assert golden.audio is not None
    assert golden.vision is not None
    soft = [golden.audio.soft_token, golden.vision.soft_token]
    lengths = data.draw(st.lists(st.integers(0, 700), min_size=1, max_size=6))
    kinds = data.draw(st.lists(st.sampled_from([7, *soft]), min_size=len(lengths), max_size=len(lengths)))
    tokens = [9, *(kind for kind, length in zip(kinds, lengths, strict=True) for _ in range(length)), 9]
    numbers = np.random.default_rng(0)
    heard, seen = (numbers.random((tokens.count(each), HIDDEN), np.float32) for each in soft)
    decoder = RememberingDecoder(10_000)
    prefill(decoder, EMBEDDER.prepare(tokens, golden.audio, heard, golden.vision, seen))
    inputs_embeds, per_layer_inputs = (np.concatenate(parts) for parts in zip(*decoder.rows, strict=True))
    plain = [PAD if token in soft else token for token in tokens]
    expected = EMBEDDER.tokens.look_up(plain)
    for token, embeddings in zip(soft, (heard, seen), strict=True):
        expected[np.array(tokens) == token] = embeddings
    np.testing.assert_array_equal(inputs_embeds, expected)
    np.testing.assert_array_equal(per_layer_inputs[:, 0], plain)


@pytest.mark.parametrize(("places", "count"), [(0, 3), (2, 3), (3, 0)])
def test_a_clip_that_does_not_fit_its_places_is_refused(audio: AudioModel, places: int, count: int) -> None:
    clip = np.zeros((count, HIDDEN), np.float32) if count else None
    with refused(RequestError, f"{places} places", f"{count} audio tokens"):
        EMBEDDER.embed([audio.soft_token] * places, audio, clip)


def test_a_model_without_per_layer_embeddings_gets_none() -> None:
    prompt = Embedder(Counted(HIDDEN), None, PAD).embed([1, 2, 3])
    assert prompt.per_layer_inputs.shape == (3, 0)
    assert len(prompt) == 3
