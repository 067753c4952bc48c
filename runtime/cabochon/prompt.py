"""Prompts: the checkpoint's own chat template around the instructions that the model was trained to follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cabochon.errors import PackageError, RequestError, missing_dependency
from cabochon.languages import language_name
from cabochon.manifest import Prompts
from cabochon.package import Package
from cabochon.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    text: str
    has_audio: bool = False
    """A clip follows the text: instructions come first, so that their keys and values can be kept between clips."""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise RequestError(f"a message has the role {self.role!r}, expected one of {', '.join(ROLES)}.")


def transcription_instruction(prompts: Prompts, language: str | None) -> str:
    """The instruction for a transcript; None when the language is not known."""
    if language is None:
        return prompts.transcribe_unknown_language
    return prompts.transcribe.replace("{source}", language_name(language))


def translation_instruction(prompts: Prompts, source: str, target: str) -> str:
    """The instruction for a transcript in the source language followed by its translation."""
    source_name, target_name = language_name(source), language_name(target)
    if source_name == target_name:
        raise RequestError(f"source and target are both {source_name}: to translate, give two different languages.")
    return prompts.translate.replace("{source}", source_name).replace("{target}", target_name)


def speech_instruction(prompts: Prompts, language: str | None, target: str | None) -> str:
    """The instruction for a transcript, and for a translation where there is a language to translate into."""
    if target is None:
        return transcription_instruction(prompts, language)
    if language is None:
        raise RequestError("to translate, the model has to know the spoken language.")
    return translation_instruction(prompts, language, target)


def split_translation(text: str, prompts: Prompts, target: str) -> tuple[str, str]:
    """Split the model's answer at the marker into (transcript, translation); either may still be empty."""
    marker = prompts.translation_marker.replace("{target}", language_name(target))
    transcript, _, translation = text.partition(marker)
    return transcript.strip(), translation.strip()


class ChatTemplate:
    """The checkpoint's Jinja chat template, run in a sandbox because it came with the checkpoint."""

    def __init__(self, source: str, *, bos_token: str) -> None:
        try:
            import jinja2
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise missing_dependency("jinja2", "onnx") from None
        self._bos_token = bos_token
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError, ValueError) as error:
            raise PackageError(
                f"the chat template of the package is not valid Jinja ({_on_one_line(error)})."
            ) from None

    def render(self, messages: Sequence[Message], *, thinking: bool = False) -> str:
        """The conversation as the text of a prompt that the model continues, perhaps with thoughts."""
        try:
            return self._template.render(
                messages=[_template_message(message) for message in messages],
                bos_token=self._bos_token,
                add_generation_prompt=True,
                enable_thinking=thinking,
            )
        except Exception as error:  # the template is a program from elsewhere, which can fail in every way
            raise RequestError(f"the chat template refuses this conversation ({_on_one_line(error)}).") from None


class PromptWriter:
    """Turns conversations into the tokens of a prompt."""

    def __init__(self, package: Package, tokenizer: Tokenizer) -> None:
        manifest = package.manifest
        template = package.path(manifest.chat_template_file).read_text(encoding="utf-8")
        self._tokenizer = tokenizer
        self._template = ChatTemplate(template, bos_token=tokenizer.token_text(manifest.bos_token))
        self._audio = manifest.audio

    def write(self, messages: Sequence[Message], audio_tokens: int = 0, *, thinking: bool = False) -> list[int]:
        """Tokens of a prompt; the template's placeholder becomes begin, `audio_tokens` soft tokens, end.

        Raises:
            RequestError: the template refuses the conversation, or does not know thoughts.
        """
        text = self._template.render(messages, thinking=thinking)
        if thinking and text == self._template.render(messages):
            raise RequestError("the model's chat template knows no thoughts: ask without thinking.")
        tokens = self._tokenizer.encode(text)
        if self._audio is None or audio_tokens == 0:
            return tokens
        audio = self._audio
        clip = [audio.begin_token, *[audio.soft_token] * audio_tokens, audio.end_token]
        return [written for token in tokens for written in (clip if token == audio.soft_token else [token])]


def _template_message(message: Message) -> dict[str, Any]:
    if not message.has_audio:
        return {"role": message.role, "content": message.text}
    return {"role": message.role, "content": [{"type": "text", "text": message.text}, {"type": "audio"}]}


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _refuse(sentence: str) -> None:
    """`raise_exception` of the templates on the hub."""
    raise ValueError(sentence)
