"""Gemma 4's own tokenizer and chat template, which are too large for this repository (15 MB)."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest
from conftest import REPOSITORY

from cabochon.prompt import ChatTemplate, Message, transcription_instruction, translation_instruction
from cabochon.tokenizer import Tokenizer
from cabochon_convert.processor import PROMPTS

SOURCE = REPOSITORY.parent / "shared" / "tokenizer"
AUDIO_TOKEN = 258881

pytestmark = pytest.mark.skipif(
    not SOURCE.is_dir(), reason=f"the published tokenizer is not at {SOURCE}: put gemma4-tokenizer.json.xz there"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path: Path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_bytes(lzma.decompress((SOURCE / "gemma4-tokenizer.json.xz").read_bytes()))
    return Tokenizer(path)


@pytest.fixture(scope="module")
def template(tokenizer: Tokenizer) -> ChatTemplate:
    source = (SOURCE / "gemma4-chat_template.jinja").read_text(encoding="utf-8")
    return ChatTemplate(source, bos_token=tokenizer.token_text(2))


@pytest.mark.parametrize(
    "instruction",
    [transcription_instruction(PROMPTS, "en"), translation_instruction(PROMPTS, "en", "de")],
    ids=["transcribe", "translate"],
)
def test_an_instruction_comes_before_exactly_one_place_for_audio(
    instruction: str, tokenizer: Tokenizer, template: ChatTemplate
) -> None:
    tokens = tokenizer.encode(template.render([Message("user", instruction, has_audio=True)]))
    assert tokens[:2] == [2, 105]
    place = tokens.index(AUDIO_TOKEN)
    assert tokens.count(AUDIO_TOKEN) == 1
    assert tokenizer.decode(tokens[3:place]).strip() == instruction
    assert tokens[place + 1] == 106


def test_a_conversation_keeps_its_turns_in_order(template: ChatTemplate) -> None:
    conversation = [Message("system", "Be brief."), Message("user", "One?"), Message("assistant", "Two.")]
    text = template.render([*conversation, Message("user", "Three?")])
    places = [text.index(part) for part in ("<|turn>system\nBe brief.", "One?", "<|turn>model\nTwo.", "Three?")]
    assert places == sorted(places)


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("system", [[], [Message("system", "Be brief.")]], ids=["alone", "system"])
def test_a_prompt_that_asks_for_thoughts_is_that_of_transformers(
    thinking: bool, system: list[Message], tokenizer: Tokenizer, template: ChatTemplate
) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [*system, Message("user", "Why?"), Message("assistant", "Therefore."), Message("user", "And?")]
    (expected,), _ = render_jinja_template(
        [[{"role": each.role, "content": each.text} for each in messages]],
        chat_template=(SOURCE / "gemma4-chat_template.jinja").read_text(encoding="utf-8"),
        add_generation_prompt=True, enable_thinking=thinking, bos_token=tokenizer.token_text(2),
    )  # fmt: skip
    assert template.render(messages, thinking=thinking) == expected


@pytest.mark.parametrize("name", ["<|turn>", "<turn|>", "<|channel>", "<|tool_call>", "<|audio|>", "<bos>", "<eos>"])
def test_what_a_stranger_said_controls_nothing(name: str, tokenizer: Tokenizer) -> None:
    (token,) = tokenizer.encode(name)
    broken = tokenizer.break_control_tokens(f"I say {name} to you")
    assert token not in tokenizer.encode(broken)
    assert broken == f"I say {name[0]} {name[1:]} to you"


@pytest.mark.parametrize("text", ["Grüße, 你好 😀!", "  two  spaces\n\tand a tab", "नमस्ते", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢"])
def test_text_survives_tokenizing_and_streaming(text: str, tokenizer: Tokenizer) -> None:
    stream = tokenizer.start_stream()
    pieces = [stream.push(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) + stream.finish() == text
