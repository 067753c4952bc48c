"""Prompts: the checkpoint's own chat template around the instructions that the model was trained to follow."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cabochon.errors import PackageError, RequestError, named_file
from cabochon.image import ImageSource, ScaledImage
from cabochon.json_dataclass import NOT_IN_JSON
from cabochon.languages import language_name
from cabochon.manifest import Prompts
from cabochon.package import Package
from cabochon.perceived import Perceived, PerceivedVideo
from cabochon.tokenizer import Tokenizer
from cabochon.tool_calls import CALL_BEGINS
from cabochon.tool_messages import join_tool_turns, template_calls, template_tools
from cabochon.tools import Tool, ToolCall
from cabochon.video import ScaledVideo, VideoSource

ROLES = ("system", "user", "assistant", "tool")
VIDEO_PLACEHOLDER = "<|video|>"
"""What Gemma 4's templates write for a video: no key of a checkpoint names it (transformers 5.23, Gemma4Processor)."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`system`, `user`, `assistant`, or `tool` for what came back from a call."""
    text: str
    has_audio: bool = False
    """A clip follows the text: instructions come first, so that their keys and values can be kept between clips."""
    tool_calls: tuple[ToolCall, ...] = ()
    """That the assistant made."""
    tool_name: str = ""
    """Of the function that came back with the text, which may be JSON."""
    images: Sequence[ImageSource | Perceived] = field(default=(), metadata=NOT_IN_JSON)
    """They precede the text, as Gemma 4 was trained."""
    videos: Sequence[VideoSource | PerceivedVideo] = field(default=(), metadata=NOT_IN_JSON)
    """They follow the images."""
    heard: Perceived | None = field(default=None, metadata=NOT_IN_JSON)
    """The clip, once it was encoded."""

    def __post_init__(self) -> None:
        for name in ("images", "videos"):
            if not isinstance(getattr(self, name), list | tuple):
                raise RequestError(f"{name} of a message are a {type(getattr(self, name)).__name__}, expected a list.")
        if self.role not in ROLES:
            raise RequestError(f"a message has the role {self.role!r}, expected one of {', '.join(ROLES)}.")
        if (self.role == "tool") != bool(self.tool_name):
            raise RequestError("a message of the role 'tool', and no other, names the function that it came from.")
        if self.tool_calls and self.role != "assistant":
            raise RequestError(f"a message of the role {self.role!r} has tool calls: only the assistant's may.")
        if self.heard is not None and not self.has_audio:
            raise RequestError("a message has a sound that was heard, but no place for it: set has_audio.")
        if self.has_audio and (self.tool_calls or self.tool_name):
            raise RequestError("a message of a tool, or with tool calls, has a sound: give it a message of its own.")


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
    """The checkpoint's Jinja chat template, run in a sandbox and within bounds because it came with the checkpoint."""

    def __init__(self, source: str, *, bos_token: str) -> None:
        from cabochon.bounded_template import BoundedEnvironment, run_template

        self._bos_token = bos_token
        self._run = run_template
        environment = BoundedEnvironment()
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.read(source)
        except Exception as error:  # besides Jinja's own, what Python says about the program that Jinja makes of it
            raise PackageError(
                f"the chat template of the package is not valid Jinja ({_on_one_line(error)})."
            ) from None

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        quote: Callable[[str], str] = str,
        *,
        thinking: bool = False,
    ) -> str:
        """The conversation as the text of a prompt that the model continues, perhaps with thoughts.

        Args:
            tools: that the model may call.
            quote: what texts of tools go through, so that they become no control tokens.
            thinking: whether it may think.

        Raises:
            RequestError: the template refuses the conversation, or does not know tools.
        """
        turns = [_template_message(message, quote) for message in messages]
        if any(message.tool_calls or message.tool_name for message in messages):
            turns = join_tool_turns(turns, quote)
        text = self._render(turns, template_tools(tools, quote), thinking=thinking)
        calls = any(message.tool_calls for message in messages)
        if (calls and CALL_BEGINS not in text) or (tools and text == self._render(turns, [], thinking=thinking)):
            raise RequestError("the model's chat template knows no tools: ask without them.")
        return text

    def _render(self, turns: list[dict[str, Any]], tools: list[dict[str, Any]], *, thinking: bool) -> str:
        try:
            return self._run(
                self._template,
                {
                    "messages": turns,
                    "tools": tools or None,
                    "bos_token": self._bos_token,
                    "add_generation_prompt": True,
                    "enable_thinking": thinking,
                },
            )
        except Exception as error:  # the template is a program from elsewhere, which can fail in every way
            raise RequestError(f"the chat template refuses this conversation ({_on_one_line(error)}).") from None


class PromptWriter:
    """Turns conversations into the tokens of a prompt."""

    def __init__(self, package: Package, tokenizer: Tokenizer) -> None:
        manifest = package.manifest
        path = package.path(manifest.chat_template_file)
        try:
            with named_file(path):
                template = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise PackageError(f"{path} is not readable text ({_on_one_line(error)}).") from None
        self._tokenizer = tokenizer
        self._template = ChatTemplate(template, bos_token=tokenizer.token_text(manifest.bos_token))
        self._audio = manifest.audio
        self._vision = manifest.vision

    def write(
        self,
        messages: Sequence[Message],
        audio_tokens: int | Sequence[int] = (),
        tools: Sequence[Tool] = (),
        seen: Sequence[ScaledImage | ScaledVideo | Perceived | PerceivedVideo] = (),
        *,
        thinking: bool = False,
    ) -> list[int]:
        """Tokens of a prompt; the template's placeholder of a sound becomes begin, its soft tokens, end.

        Args:
            messages: of the conversation.
            audio_tokens: of its one clip, or of each.
            seen: its images and videos in order, each with a place of its own.
            thinking: whether the model may think before it answers.

        Raises:
            RequestError: the template refuses the conversation, or does not know thoughts, tools, images or videos.
        """
        quote = self._tokenizer.break_control_tokens
        text = self._template.render(messages, tools, quote, thinking=thinking)
        if thinking and text == self._template.render(messages, tools, quote):
            raise RequestError("the model's chat template knows no thoughts: ask without thinking.")
        tokens = self._tokenizer.encode(self._with_places(text, seen) if self._vision else text)
        counts = [audio_tokens] if isinstance(audio_tokens, int) else list(audio_tokens)
        return self._with_sounds(tokens, [count for count in counts if count])

    def _with_sounds(self, tokens: list[int], counts: Sequence[int]) -> list[int]:
        """A prompt with as many soft tokens as each of its sounds has."""
        audio = self._audio
        if audio is None or not counts:
            return tokens
        places = tokens.count(audio.soft_token)
        if places != len(counts):
            raise RequestError(
                f"the prompt has {places} places for sounds, expected {len(counts)}: the chat template has none for "
                "them, or a text holds the placeholder of one."
            )
        clips = ([audio.begin_token, *[audio.soft_token] * count, audio.end_token] for count in counts)
        return [written for token in tokens for written in (next(clips) if token == audio.soft_token else [token])]

    def _with_places(self, text: str, seen: Sequence[ScaledImage | ScaledVideo | Perceived | PerceivedVideo]) -> str:
        """A rendered conversation whose placeholders became the text of begin, soft tokens and end, like transformers'
        Gemma4Processor.replace_image_token and replace_video_token; a frame counts as an image.
        """
        vision = self._vision
        assert vision is not None  # nothing is seen without
        begin, soft, end = map(self._tokenizer.token_text, (vision.begin_token, vision.soft_token, vision.end_token))
        placeholders = [soft, *([VIDEO_PLACEHOLDER] if any(map(_is_video, seen)) else [])]
        pattern = "|".join(map(re.escape, placeholders))
        found = re.findall(pattern, text)
        if found != [VIDEO_PLACEHOLDER if _is_video(each) else soft for each in seen]:
            raise RequestError(
                f"the prompt has {len(found)} places for images and videos, expected {len(seen)}: "
                f"the chat template has none for them, or a text holds {soft} or {VIDEO_PLACEHOLDER}."
            )
        written = []
        for each in seen:
            if isinstance(each, ScaledImage | Perceived):
                written.append(begin + soft * each.tokens + end)
            else:
                frames = zip([frame.tokens for frame in each.frames], each.seconds, strict=True)
                written.append(" ".join(f"{_clock(at)} {begin}{soft * tokens}{end}" for tokens, at in frames))
        between = re.split(pattern, text)
        return "".join(part for pair in zip(between, [*written, ""], strict=True) for part in pair)


def _is_video(seen: object) -> bool:
    return isinstance(seen, ScaledVideo | PerceivedVideo)


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60):02d}:{int(seconds % 60):02d}"


def _template_message(message: Message, quote: Callable[[str], str]) -> dict[str, Any]:
    if message.tool_calls:
        calls = template_calls(message.tool_calls, quote)
        return {"role": message.role, "content": message.text, "tool_calls": calls}
    if message.tool_name:
        return {"role": message.role, "content": message.text, "name": quote(message.tool_name)}
    if not (message.has_audio or message.images or message.videos):
        return {"role": message.role, "content": message.text}
    parts: list[dict[str, str]] = [{"type": "image"}] * len(message.images) + [{"type": "video"}] * len(message.videos)
    parts += [{"type": "text", "text": message.text}] + [{"type": "audio"}] * message.has_audio
    return {"role": message.role, "content": parts}


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _refuse(sentence: str) -> None:
    """`raise_exception` of the templates on the hub."""
    raise ValueError(sentence)
