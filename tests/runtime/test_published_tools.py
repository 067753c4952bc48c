"""Tools and forms of answers with Gemma 4's own vocabulary and chat template, which are not in this repository."""

from __future__ import annotations

import json
import lzma
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from cabochon.constrained_decoding import Constraint, GrammarReader, JsonSchema, Regex
from cabochon.prompt import ChatTemplate, Message
from cabochon.tokenizer import Tokenizer
from cabochon.tool_calls import CallTokens, ToolCallReader, parse_call
from cabochon.tool_grammar import grammar_of_calls
from cabochon.tool_messages import join_tool_turns
from cabochon.tools import Tool, ToolCall

SOURCE = REPOSITORY.parent / "shared" / "tokenizer"
STOP_TOKENS = (1, 106, 50)
VOCABULARY = 262_144

pytestmark = pytest.mark.skipif(
    not SOURCE.is_dir(), reason=f"the published tokenizer is not at {SOURCE}: put gemma4-tokenizer.json.xz there"
)

CITY: dict[str, Any] = {"type": "string", "description": "Where it is.", "enum": ["Köln", "Bonn"]}
NEAR = {"type": "array", "description": "Places.", "items": {"type": "object", "properties": {"a": {"type": "number"}}}}
SIZE = {
    "type": "object",
    "description": "How large.",
    "properties": {"wide": {"type": "integer"}},
    "required": ["wide"],
}
PROPERTIES = {"city": CITY, "near": NEAR, "size": SIZE, "exact": {"type": "boolean", "nullable": True}}
FIND = Tool("find", "Finds a room.", {"type": "object", "properties": PROPERTIES, "required": ["city", "size"]})
NOW = Tool("now", "Says what time it is.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("tokenizer")
    (path / "tokenizer.json").write_bytes(lzma.decompress((SOURCE / "gemma4-tokenizer.json.xz").read_bytes()))
    (path / "tokenizer_config.json").write_bytes((SOURCE / "gemma4-tokenizer_config.json").read_bytes())
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder / "tokenizer.json")


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate((SOURCE / "gemma4-chat_template.jinja").read_text(encoding="utf-8"), bos_token="<bos>")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> GrammarReader:
    return GrammarReader(tokenizer, VOCABULARY, STOP_TOKENS)


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=9)
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,6}", fullmatch=True)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(-1e90, 1e90) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
CALLS = st.builds(ToolCall, NAMES, st.dictionaries(NAMES, VALUES, max_size=3))


@given(st.lists(CALLS, max_size=2).map(tuple), TEXTS, st.sampled_from([(), (FIND,), (FIND, NOW)]))
def test_prompts_with_tools_are_those_of_transformers(
    template: ChatTemplate, reference: Any, calls: tuple[ToolCall, ...], result: str, tools: tuple[Tool, ...]
) -> None:
    conversation = [Message("system", "Be brief."), Message("user", "hello")]
    plain: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    if calls:
        conversation.append(Message("assistant", "", tool_calls=calls))
        conversation.append(Message("tool", f"_{result}", tool_name=calls[0].name))
        written = [{"type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in calls]
        responses = [{"name": calls[0].name, "response": f"_{result}"}]
        plain.append({"role": "assistant", "tool_calls": written, "tool_responses": responses})
    expected = reference.apply_chat_template(
        plain, tools=[tool.as_json() for tool in tools] or None, tokenize=False, add_generation_prompt=True
    )
    assert template.render(conversation, tools) == expected


@given(CALLS)
def test_what_the_published_template_writes_of_a_call_is_read_as_the_same_call(
    template: ChatTemplate, tokenizer: Tokenizer, call: ToolCall
) -> None:
    text = template.render([Message("user", "hi"), Message("assistant", "", tool_calls=(call,)), Message("user", "?")])
    reader = ToolCallReader(tokenizer, [call.name])
    for token in tokenizer.encode(text):
        reader.take(token)
    assert reader.problem == ""
    assert reader.calls == [call]


def test_the_turns_of_a_tool_are_one_turn(template: ChatTemplate) -> None:
    conversation = [
        Message("user", "hi"), Message("assistant", "", tool_calls=(ToolCall("now"),)),
        Message("tool", "noon", tool_name="now"), Message("assistant", "It is noon."), Message("user", "thanks"),
    ]  # fmt: skip
    assert (
        '<|turn>model\n<|tool_call>call:now{}<tool_call|><|tool_response>response:now{value:<|"|>noon<|"|>}<tool_response|>'
        "It is noon.<turn|>\n<|turn>user\nthanks<turn|>\n"
    ) in template.render(conversation, [NOW])
    assert len(join_tool_turns([{"role": "user", "content": "a"}], str)) == 1


def choices(constraint: Constraint) -> np.ndarray:
    logits = np.zeros(VOCABULARY, np.float32)
    constraint.restrict(logits)
    return np.flatnonzero(np.isfinite(logits))


def walk(constraint: Constraint, random: np.random.Generator, most: int) -> list[int]:
    """Any tokens that are allowed, one after the other."""
    tokens: list[int] = []
    while len(tokens) < most:
        token = int(random.choice(choices(constraint)))
        if token in STOP_TOKENS:
            break
        constraint.accept(token)
        tokens.append(token)
        if constraint.finished:
            break
    return tokens


def test_tokens_spell_the_texts_that_they_decode_to(tokenizer: Tokenizer) -> None:
    spelled = tokenizer.spell(VOCABULARY)
    for text in ("Grüße, 你好 😀!", "  two  spaces\n\tand a tab", "नमस्ते", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", '{"a": [1, null]}'):
        assert b"".join(spelled[token] for token in tokenizer.encode(text)).decode() == text


def test_any_walk_through_what_is_allowed_is_json(tokenizer: Tokenizer, grammars: GrammarReader) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "maxLength": 30}, "b": {"type": "array", "items": CITY}},
        "required": ["a", "b"], "additionalProperties": False,
    }  # fmt: skip
    random = np.random.default_rng(0)
    for _ in range(10):
        constraint = grammars.read(JsonSchema(schema))
        tokens = walk(constraint, random, 400)
        assert constraint.finished
        value = json.loads(tokenizer.decode(tokens))
        assert len(value["a"]) <= 30
        assert set(value["b"]) <= {"Köln", "Bonn"}


def test_a_text_in_json_may_be_spelled_in_any_way(tokenizer: Tokenizer, grammars: GrammarReader) -> None:
    for text in ("你好 😀 नमस्ते", "\U0001d518", "𒀀"):
        tokens = tokenizer.encode(json.dumps([text], ensure_ascii=False))
        constraint = grammars.read(JsonSchema({"type": "array", "items": {"type": "string"}}))
        for token in tokens:
            assert token in choices(constraint)
            constraint.accept(token)
        assert constraint.finished


def test_control_tokens_are_never_part_of_an_answer_in_a_form(tokenizer: Tokenizer, grammars: GrammarReader) -> None:
    for form in (JsonSchema({"type": "string"}), Regex("(?s:.*)")):
        allowed = set(choices(grammars.read(form)).tolist())
        assert not (allowed & tokenizer.control_tokens) - set(STOP_TOKENS)


def test_any_walk_through_the_grammar_of_calls_is_a_call(tokenizer: Tokenizer, grammars: GrammarReader) -> None:
    control = CallTokens.of(tokenizer)
    random = np.random.default_rng(1)
    for _ in range(20):
        constraint = grammars.read(grammar_of_calls([FIND, NOW], only="find"))
        # Texts and lists without an end are drawn again.
        tokens = walk(constraint, random, 300)
        if not constraint.finished:
            continue
        assert tokens[0] == control.begins
        assert tokens[-1] == control.ends
        call = parse_call(tokenizer, control, tokens[1:-1])
        assert call.name == "find"
        assert call.arguments["city"] in ("Köln", "Bonn")
        assert isinstance(call.arguments["size"]["wide"], int)
        assert set(call.arguments) <= set(PROPERTIES)


@settings(max_examples=20)
@given(CALLS)
def test_what_a_call_looks_like_in_a_prompt_is_what_the_grammar_allows(
    template: ChatTemplate, tokenizer: Tokenizer, grammars: GrammarReader, call: ToolCall
) -> None:
    properties: dict[str, Any] = {name: {} for name in call.arguments}
    tool = Tool(call.name, "", {"type": "object", "properties": properties, "required": list(properties)})
    text = template.render([Message("user", "hi"), Message("assistant", "", tool_calls=(call,)), Message("user", "?")])
    tokens = tokenizer.encode(text[text.index("<|tool_call>") : text.index("<tool_call|>") + len("<tool_call|>")])
    constraint = grammars.read(grammar_of_calls([tool], only=call.name))
    for token in tokens:
        assert token in choices(constraint), (tokenizer.token_text(token), text)
        constraint.accept(token)
    assert constraint.finished


def test_masks_of_the_whole_vocabulary_take_less_than_a_decoding_step(grammars: GrammarReader) -> None:
    constraint = grammars.read(JsonSchema({"type": "object"}))
    logits = np.zeros(VOCABULARY, np.float32)
    constraint.restrict(logits)
    started = time.perf_counter()
    for _ in range(20):
        constraint.restrict(logits)
    assert (time.perf_counter() - started) / 20 < 0.02
