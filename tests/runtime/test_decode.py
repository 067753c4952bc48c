from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from conftest import GOLDEN_MANIFEST
from counting_decoder import EMBEDDER, HIDDEN, PAD, Counted, CountingDecoder
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from cabochon.audio_model import AudioModel
from cabochon.backend import LONGEST_RUN
from cabochon.decode import decode, prefill
from cabochon.embedder import Embedder, PromptEmbeddings
from cabochon.errors import RequestError
from cabochon.manifest import manifest_from_text
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


@pytest.mark.parametrize(("places", "count"), [(0, 3), (2, 3), (3, 0)])
def test_a_clip_that_does_not_fit_its_places_is_refused(audio: AudioModel, places: int, count: int) -> None:
    clip = np.zeros((count, HIDDEN), np.float32) if count else None
    with refused(RequestError, f"{places} places", f"{count} audio tokens"):
        EMBEDDER.embed([audio.soft_token] * places, audio, clip)


def test_a_model_without_per_layer_embeddings_gets_none() -> None:
    prompt = Embedder(Counted(HIDDEN), None, PAD).embed([1, 2, 3])
    assert prompt.per_layer_inputs.shape == (3, 0)
    assert len(prompt) == 3
