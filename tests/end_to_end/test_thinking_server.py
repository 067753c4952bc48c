"""Thoughts, stop strings and settings of sampling over HTTP, read by the real client of OpenAI."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from served import Served
from thinking_package import convert_with_thoughts, script

import cabochon
from cabochon.sampling import SamplingSettings
from cabochon.server import ServerSettings
from cabochon.server_thoughts import LONGEST_THOUGHTS
from cabochon.tokenizer import Tokenizer

ASKED = [{"role": "user", "content": "What is the opposite of hot?"}]
QUESTION = [cabochon.Message("user", "What is the opposite of hot?")]
GREEDY = SamplingSettings()
THINKING = "<|channel>thought\nlet me see<channel|>Hello!"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> cabochon.Model:
    return cabochon.load(convert_with_thoughts(tmp_path_factory.mktemp("thinking")))


@pytest.fixture(scope="module")
def served(model: cabochon.Model) -> Iterator[Served]:
    with Served(model, ServerSettings("tiny", max_tokens=400)) as server:
        yield server


@pytest.fixture
def tokenizer(model: cabochon.Model) -> Tokenizer:
    return Tokenizer(model.package.path(model.package.manifest.tokenizer_file))


def ask(client: openai.OpenAI, **wishes: Any) -> Any:
    return client.chat.completions.create(model="tiny", messages=ASKED, **wishes)  # type: ignore[call-overload]


def let_it_think(model: cabochon.Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, [*tokenizer.encode(THINKING), model.package.manifest.sampling.stop_tokens[0]])


def test_thoughts_stand_beside_the_answer_and_are_counted(
    client: openai.OpenAI, model: cabochon.Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_it_think(model, tokenizer, monkeypatch)
    for effort in ("minimal", "low", "medium", "high"):
        answer = ask(client, reasoning_effort=effort)
        message = answer.choices[0].message
        assert (message.content, message.reasoning_content) == ("Hello!", "let me see")
        thoughts = len(tokenizer.encode("thought\nlet me see"))
        assert answer.usage.completion_tokens_details.reasoning_tokens == thoughts
        assert answer.usage.completion_tokens == len(tokenizer.encode(THINKING))


def test_thoughts_come_piece_by_piece_before_the_answer(
    client: openai.OpenAI, model: cabochon.Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_it_think(model, tokenizer, monkeypatch)
    *pieces, last = ask(client, reasoning_effort="high", stream=True, stream_options={"include_usage": True})
    deltas = [piece.choices[0].delta for piece in pieces]
    thoughts = [getattr(delta, "reasoning_content", None) for delta in deltas]
    assert "".join(each or "" for each in thoughts) == "let me see"
    assert sum(each is not None for each in thoughts) > 1
    assert "".join(delta.content or "" for delta in deltas) == "Hello!"
    first_word = next(place for place, delta in enumerate(deltas) if delta.content)
    assert all(each is None for each in thoughts[first_word:])
    assert pieces[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage.completion_tokens_details.reasoning_tokens == len(tokenizer.encode("thought\nlet me see"))


def test_no_effort_is_no_thought(client: openai.OpenAI, model: cabochon.Model) -> None:
    expected = model.chat(QUESTION, GREEDY).finish()
    for wishes in ({"reasoning_effort": "none"}, {}, {"reasoning_effort": None}):
        answer = ask(client, temperature=0, **wishes)
        assert answer.choices[0].message.content == expected
        assert not hasattr(answer.choices[0].message, "reasoning_content")
        assert answer.usage.completion_tokens_details.reasoning_tokens == 0


@pytest.mark.parametrize("effort", ["minimal", "low"])
def test_thoughts_end_where_their_effort_ends(
    client: openai.OpenAI, tokenizer: Tokenizer, model: cabochon.Model, monkeypatch: pytest.MonkeyPatch, effort: Any
) -> None:
    budget, stop = LONGEST_THOUGHTS[effort], model.package.manifest.sampling.stop_tokens[0]
    ramble = (tokenizer.encode("and so on and on ") * budget)[:budget]
    script(monkeypatch, [*tokenizer.encode("<|channel>"), *ramble, *tokenizer.encode("Hello!"), stop])
    answer = ask(client, reasoning_effort=effort)
    assert answer.choices[0].message.content == "Hello!"
    assert answer.usage.completion_tokens_details.reasoning_tokens == budget


def test_a_stop_string_ends_an_answer_and_is_left_out(client: openai.OpenAI, model: cabochon.Model) -> None:
    whole = model.chat(QUESTION, GREEDY).finish()
    assert " of hot" in whole
    for stop in (" of hot", ["never", " of hot"]):
        choice = ask(client, temperature=0, stop=stop).choices[0]
        assert choice.message.content == whole[: whole.index(" of hot")]
        assert choice.finish_reason == "stop"
        pieces = ask(client, temperature=0, stop=stop, stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == choice.message.content
    assert ask(client, temperature=0, stop=[]).choices[0].message.content == whole


@pytest.mark.parametrize(
    ("extra", "settings"),
    [
        ({"min_p": 0.1, "top_k": -1}, {"min_p": 0.1, "top_k": 0}),
        ({"top_k": 3}, {"top_k": 3}),
        ({"repetition_penalty": 1.7}, {"repetition_penalty": 1.7}),
    ],
)
def test_settings_of_vllm_draw_like_those_of_python(
    client: openai.OpenAI, model: cabochon.Model, extra: dict[str, Any], settings: dict[str, Any]
) -> None:
    sampling = model.package.manifest.sampling
    wanted = {"top_k": sampling.top_k, "top_p": sampling.top_p, "temperature": 1.9} | settings
    found = [ask(client, seed=seed, temperature=1.9, extra_body=extra) for seed in range(4)]
    expected = [model.chat(QUESTION, SamplingSettings(**wanted, seed=seed), 400).finish() for seed in range(4)]
    assert [answer.choices[0].message.content for answer in found] == expected
    plain = [ask(client, seed=seed, temperature=1.9, extra_body={"top_k": 0}) for seed in range(4)]
    assert [answer.choices[0].message.content for answer in plain] != expected


@pytest.mark.parametrize(
    "wishes",
    [
        {"stop": list("abcde")}, {"stop": ""}, {"stop": ["a", ""]}, {"stop": 1}, {"reasoning_effort": "huge"},
        {"reasoning_effort": 3}, {"min_p": 2}, {"repetition_penalty": 0}, {"top_k": -2}, {"stream_options": 1},
    ],
)  # fmt: skip
def test_what_cannot_be_wished_is_refused_in_one_sentence(served: Served, wishes: dict[str, Any]) -> None:
    answer = httpx.post(f"{served.address}/v1/chat/completions", json={"messages": ASKED} | wishes)
    assert answer.status_code == 422
    message = answer.json()["error"]["message"]
    assert message.endswith(".")
    assert len(message.splitlines()) == 1
