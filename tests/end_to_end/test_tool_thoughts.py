"""Forms of answers, where the model may think first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tool_package import convert_with_tools, declaration

import cabochon
from cabochon import JsonSchema, Message, SamplingSettings
from cabochon.tokenizer import Tokenizer

SCHEMA = JsonSchema({"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2})


@pytest.fixture(scope="module")
def model(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> cabochon.Model:
    return cabochon.load(convert_with_tools(random_checkpoint, tmp_path_factory.mktemp("thoughts")), threads=1)


def test_thoughts_are_free_and_the_answer_behind_them_keeps_to_its_form(
    model: cabochon.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The random model never thinks by itself, so its first token is made a thought."""
    tokenizer: Tokenizer = model._tokenizer
    begin = tokenizer.control_token("<|channel>")
    from cabochon import sampling

    choose = sampling.Sampler.choose
    count = 0

    def think_first(sampler: sampling.Sampler, logits: sampling.Float32Array) -> int:
        nonlocal count
        count += 1
        if count == 1:
            assert begin is not None
            assert logits[begin] > -1e30
            return begin
        return choose(sampler, logits)

    monkeypatch.setattr(sampling.Sampler, "choose", think_first)
    for seed in range(10):
        count = 0
        settings = SamplingSettings(temperature=2.0, seed=seed)
        answer = model.chat([Message("user", "hi")], settings, 200, thinking=7, answer_format=SCHEMA)
        text = answer.finish()
        assert answer.statistics.complete
        assert set(json.loads(text)) <= {1, 2}
        assert answer.statistics.new_tokens > 7


def test_a_conversation_holds_its_calls_when_it_is_saved(model: cabochon.Model, tmp_path: Path) -> None:
    conversation = model.start_conversation()
    conversation.ask("hi", max_tokens=5, tools=[declaration()]).finish()
    conversation._messages = (
        *conversation.messages[:-1], Message("assistant", "", tool_calls=(cabochon.ToolCall("find", {"a": [1, None]}),))
    )  # fmt: skip
    conversation.save(tmp_path / "kept")
    assert model.load_conversation(tmp_path / "kept").messages == conversation.messages
