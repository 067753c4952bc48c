from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from cabochon.errors import PackageError, RequestError
from cabochon.languages import LANGUAGE_NAMES, language_name
from cabochon.manifest_file import read_manifest
from cabochon.package import Package
from cabochon.prompt import (
    ChatTemplate,
    Message,
    PromptWriter,
    split_translation,
    transcription_instruction,
    translation_instruction,
)
from cabochon.tokenizer import Tokenizer
from cabochon_convert.processor import PROMPTS

LANGUAGES = st.sampled_from(sorted(LANGUAGE_NAMES.values()))
CONVERSATION = [Message("user", "hello")]


def render(template: str) -> str:
    return ChatTemplate(template, bos_token="<bos>").render(CONVERSATION)


@pytest.mark.parametrize(
    ("given_as", "name"),
    [
        ("de", "German"),
        ("DE", "German"),
        (" de ", "German"),
        ("German", "German"),
        ("GERMAN", "German"),
        ("lao", "Lao"),
        ("german", "German"),
        (" German ", "German"),
        ("Brazilian Portuguese", "Brazilian Portuguese"),
        ("Serbo-Croatian", "Serbo-Croatian"),
    ],
)
def test_a_language_goes_by_its_code_or_its_english_name(given_as: str, name: str) -> None:
    assert language_name(given_as) == name


def test_no_language_is_offered_twice_and_both_codes_of_norwegian_are_understood() -> None:
    names = list(LANGUAGE_NAMES.values())
    assert len(set(names)) == len(names)
    assert [language_name(code) for code in ("no", "nb")] == ["Norwegian", "Norwegian"]


@pytest.mark.parametrize(
    "language", ["", " ", "-", "xx", "deu", "pt-BR", "q", "12", "German1", "German\nIgnore this", "{source}", "<bos>"]
)
def test_what_is_no_language_is_refused(language: str) -> None:
    with refused(RequestError, "is not a language", "German", "de"):
        language_name(language)


@given(st.text(max_size=20))
def test_no_language_smuggles_anything_but_letters_into_the_prompt(text: str) -> None:
    try:
        name = language_name(text)
    except RequestError:
        return
    assert all(letter.isalpha() or letter in " -" for letter in name)


def test_instructions_name_the_languages_and_nothing_stays_unfilled() -> None:
    transcription = transcription_instruction(PROMPTS, "en")
    assert transcription.count("English") == 2
    translation = translation_instruction(PROMPTS, "en", "German")
    assert translation.count("English") == 2
    assert translation.count("German") == 3
    for instruction in (transcription, translation, transcription_instruction(PROMPTS, None)):
        assert "{" not in instruction


@given(st.text(max_size=30), st.text(max_size=30), LANGUAGES)
def test_transcript_and_translation_are_told_apart(transcript: str, translation: str, target: str) -> None:
    marker = f"\n{target}: "
    found = split_translation(transcript + marker + translation, PROMPTS, target)
    if marker not in transcript + marker[:-1]:
        assert found == (transcript.strip(), translation.strip())


def test_an_unfinished_answer_has_a_transcript_only() -> None:
    assert split_translation("good morn", PROMPTS, "de") == ("good morn", "")
    assert split_translation("good morning\nGerman: ", PROMPTS, "de") == ("good morning", "")
    assert split_translation("good morning\nGerman: guten\nGerman: x", PROMPTS, "de")[1] == "guten\nGerman: x"


def test_the_template_of_the_checkpoint_puts_audio_after_the_instruction() -> None:
    template = ChatTemplate((TINY / "chat_template.jinja").read_text(encoding="utf-8"), bos_token="<bos>")
    assert template.render([Message("user", "listen", has_audio=True)]) == (
        "<bos><|turn>user\nlisten<|audio|><turn|>\n<|turn>model\n"
    )


def test_a_conversation_is_rendered_turn_by_turn() -> None:
    template = ChatTemplate((TINY / "chat_template.jinja").read_text(encoding="utf-8"), bos_token="<bos>")
    conversation = [Message("system", "be brief"), Message("user", "hi"), Message("assistant", "hello")]
    rendered = template.render([*conversation, Message("user", "bye")])
    assert rendered.count("<|turn>") == 5
    assert rendered.index("be brief") < rendered.index("hi") < rendered.index("hello") < rendered.index("bye")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__ }}{{ messages.__class__.__base__ }}",
        "{{ raise_exception.__globals__ }}{{ raise_exception.__globals__['json'] }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ '%s'|format(messages) }}{{ '{0.__class__.__base__}'.format(messages) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{% import 'os' as os %}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_hostile_template_reaches_nothing_outside_its_sandbox(template: str) -> None:
    with refused(RequestError, "chat template"):
        render(template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('only\ntext') }}",
        "{{ 1 / 0 }}",
        "{{ range(1000000000000) }}",
        "{{ 10.0 ** 1000 }}",
        "{{ messages[5].role }}",
        "{{ messages[0].role.nothing.here }}",
        "{{ messages + 1 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_that_fails_on_a_conversation_is_a_refusal(template: str) -> None:
    with refused(RequestError, "chat template"):
        render(template)


@pytest.mark.parametrize(
    "template", ["{{", "{% if %}", "{% for %}", "{{ x | nofilter }}", "{% endif %}", "{{" + "(" * 5000]
)
def test_a_template_that_is_not_jinja_is_refused(template: str) -> None:
    with refused(PackageError, "not valid Jinja"):
        render(template)


def test_a_template_that_is_no_text_is_refused(random_package: Path, tmp_path: Path) -> None:
    package = Package(Path(shutil.copytree(random_package, tmp_path / "package")), read_manifest(random_package))
    package.path(package.manifest.chat_template_file).write_bytes(b"\xff\xfe")
    with refused(PackageError, "not readable text"):
        PromptWriter(package, Tokenizer(package.path(package.manifest.tokenizer_file)))
