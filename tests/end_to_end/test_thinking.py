"""Thoughts are told from the answer, and end when they become too long."""

from __future__ import annotations

import pytest
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st
from thinking_package import convert_with_thoughts, script

import cabochon
from cabochon.sampling import SamplingSettings
from cabochon.thinking import Thoughts
from cabochon.tokenizer import Tokenizer

GREEDY = SamplingSettings()
QUESTION = [cabochon.Message("user", "Where is the station?")]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(TINY / "tokenizer.json")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> cabochon.Model:
    return cabochon.load(convert_with_thoughts(tmp_path_factory.mktemp("thinking")))


def split(tokenizer: Tokenizer, text: str) -> tuple[str, str]:
    """Thoughts and answer."""
    thoughts, stream, answer = Thoughts(tokenizer), tokenizer.start_stream(), ""
    for token in tokenizer.encode(text):
        if not thoughts.take(token):
            answer += stream.push(token)
    return thoughts.text, answer + stream.finish()


@pytest.mark.parametrize(
    ("text", "thoughts", "answer"),
    [
        ("<|channel>thought\nlet me see<channel|>Hello!", "let me see", "Hello!"),
        ("Hello!", "", "Hello!"),
        ("<|channel>thought\n<channel|>Hello!", "", "Hello!"),
        ("<|channel>thought\nlet me see", "let me see", ""),
        ("One.<|channel>thought\nlet me<channel|> Two.<|channel>thought\nsee<channel|>", "let me\nsee", "One. Two."),
        ("<channel|>Hello!", "", "Hello!"),
    ],
)
def test_thoughts_are_what_stands_in_their_channel(tokenizer: Tokenizer, text: str, thoughts: str, answer: str) -> None:
    assert split(tokenizer, text) == (thoughts, answer)


@given(st.text("ab é🙂\n", max_size=20), st.text("ab é🙂\n", max_size=20))
def test_whatever_is_thought_stays_out_of_the_answer(thought: str, answer: str) -> None:
    tokenizer = Tokenizer(TINY / "tokenizer.json")
    found = split(tokenizer, f"<|channel>thought\n{thought}<channel|>{answer}")
    assert found[0] == thought.strip()
    assert found[1] == tokenizer.decode(tokenizer.encode(answer))


def test_an_answer_keeps_thoughts_apart(
    model: cabochon.Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = model.package.manifest.sampling.stop_tokens[0]
    script(monkeypatch, [*tokenizer.encode("<|channel>thought\nlet me see<channel|>Hello!"), stop])
    answer = model.chat(QUESTION, GREEDY, thinking=True)
    seen = [(piece, answer.thoughts) for piece in answer]
    assert answer.text == "Hello!"
    assert answer.thoughts == "let me see"
    assert answer.statistics.complete
    # They are seen while they come.
    assert any(piece == "" and thoughts not in ("", "let me see") for piece, thoughts in seen)


@pytest.mark.parametrize("budget", [1, 3, 20])
def test_thoughts_end_where_their_budget_ends(
    model: cabochon.Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    begin = tokenizer.encode("<|channel>")
    stop = model.package.manifest.sampling.stop_tokens[0]
    ramble = (tokenizer.encode("and so on and on ") * budget)[:budget]
    # What it prefers when its time is up is not asked for: the end of thoughts is put there.
    script(monkeypatch, [*begin, *ramble, *tokenizer.encode("Hello!"), stop])
    answer = model.chat(QUESTION, GREEDY, thinking=budget)
    assert answer.finish() == "Hello!"
    assert answer.statistics.new_tokens == 1 + budget + 1 + len(tokenizer.encode("Hello!"))


def test_thinking_is_asked_for_as_the_template_says(
    model: cabochon.Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[list[int]] = []
    write = model._prompts.write

    def note(*given: object, **named: object) -> list[int]:
        prompts.append(write(*given, **named))  # type: ignore[arg-type]
        return prompts[-1]

    monkeypatch.setattr(model._prompts, "write", note)
    model.chat(QUESTION, GREEDY, 1, thinking=True).finish()
    model.chat(QUESTION, GREEDY, 1).finish()
    (switch,) = tokenizer.encode("<|think|>")
    assert prompts[0] == [switch, *prompts[1]]
    assert switch not in prompts[1]
