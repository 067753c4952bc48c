"""What the HTTP server is asked for: OpenAI's shapes, as far as a model on a device can fulfil them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from cabochon.errors import RequestError
from cabochon.prompt import Message
from cabochon.sampling import SamplingSettings
from cabochon.server_thoughts import ReasoningEffort
from cabochon.server_tools import MAX_TOOLS, ChoiceOfTools, GivenToolCall, ResponseFormat, ToolDeclaration
from cabochon.sight import SightSettings

MAX_TEXT = 1_000_000
MAX_IMAGES = 32
"""Of a conversation: a small file may hold many pixels, each of which takes its time."""
AUDIO_FORMATS = ("wav", "mp3", "flac", "ogg")
MAX_STOPS = 4
StopString = Annotated[str, Field(min_length=1, max_length=1000)]


class _Request(BaseModel):
    # What OpenAI has and a model here does not use is let through, so that its clients work.
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class TextPart(_Request):
    """A piece of a message that is text."""

    type: Literal["text"]
    text: str = Field(max_length=MAX_TEXT)


class InputAudio(_Request):
    """A sound file in base64."""

    data: str
    format: Literal["wav", "mp3", "flac", "ogg"]

    def content(self) -> bytes:
        """Its bytes.

        Raises:
            RequestError: it is not base64.
        """
        try:
            return base64.b64decode(self.data, validate=True)
        except (binascii.Error, ValueError):
            raise RequestError("input_audio.data is not base64.") from None


class AudioPart(_Request):
    """A piece of a message that is a sound."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class ImageUrl(_Request):
    """An image in a data URI."""

    url: str

    def content(self) -> bytes:
        """Its bytes.

        Raises:
            RequestError: it is somewhere else, or not base64.
        """
        head, comma, data = self.url.partition(",")
        if head[:5].lower() != "data:":
            raise RequestError(
                "image_url.url is not a data URI: this server fetches nothing, so send data:image/jpeg;base64,…."
            )
        if not comma or not head.lower().endswith(";base64"):
            raise RequestError("image_url.url is not in base64: expected data:image/jpeg;base64,….")
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise RequestError("image_url.url is not base64.") from None


class ImagePart(_Request):
    """A piece of a message that is an image."""

    type: Literal["image_url"]
    image_url: ImageUrl


class ChatMessage(_Request):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[str, Field(max_length=MAX_TEXT)]
        | list[Annotated[TextPart | AudioPart | ImagePart, Field(discriminator="type")]]
        | None
    ) = Field(default="")
    tool_calls: list[GivenToolCall] | None = None
    tool_call_id: str | None = None

    def text(self) -> str:
        """All of its text."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    def sounds(self) -> list[InputAudio]:
        """Its sounds."""
        parts = self.content if isinstance(self.content, list) else []
        return [part.input_audio for part in parts if isinstance(part, AudioPart)]

    def images(self) -> list[bytes]:
        """Its images.

        Raises:
            RequestError: see `ImageUrl.content`.
        """
        parts = self.content if isinstance(self.content, list) else []
        return [part.image_url.content() for part in parts if isinstance(part, ImagePart)]


class StreamOptions(_Request):
    """What a stream holds besides the answer."""

    include_usage: bool = False


class ChatRequest(_Request):
    """POST /v1/chat/completions"""

    model: str = ""
    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    n: Literal[1] = 1
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None = None
    reasoning_effort: ReasoningEffort | None = None
    top_k: int | None = Field(default=None, ge=-1, lt=2**31)
    """An addition to OpenAI's, as all below, with vLLM's names: candidates to choose from; -1 or 0: all."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, ge=0.1, le=10)
    tools: list[ToolDeclaration] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: ChoiceOfTools | None = None
    response_format: ResponseFormat | None = None
    image_tokens: int | None = Field(default=None, ge=1)
    """Tokens at most of an image."""

    def longest_answer(self, most: int) -> int:
        """Tokens, at most so many."""
        return min(self.max_completion_tokens or self.max_tokens or most, most)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with what the answer took."""
        return self.stream_options is not None and self.stream_options.include_usage

    def stop_strings(self) -> tuple[str, ...]:
        """Texts at which the answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sound(self) -> InputAudio | None:
        """The one sound of the conversation.

        Raises:
            RequestError: there are several.
        """
        sounds = [sound for message in self.messages for sound in message.sounds()]
        if len(sounds) > 1:
            raise RequestError(f"the conversation has {len(sounds)} sounds, expected at most one.")
        return sounds[0] if sounds else None

    def conversation(self, quote: Callable[[str], str]) -> list[Message]:
        """The messages as the model's template takes them.

        Args:
            quote: what every text goes through, so that it becomes no control token.

        Raises:
            RequestError: a tool's message belongs to no call, a call has arguments that are no JSON object, there are
                too many images, or one is not in the request.
        """
        names: dict[str, str] = {}
        messages = []
        for message in self.messages:
            role = "system" if message.role == "developer" else message.role
            calls = message.tool_calls or []
            names |= {call.id: call.function.name for call in calls}
            # A tool's text is quoted after its JSON was read.
            text = message.text() if role == "tool" else quote(message.text())
            name = names.get(message.tool_call_id or "", "")
            if role == "tool" and not name:
                raise RequestError(
                    f"a message of a tool has the tool_call_id {message.tool_call_id!r}, which no call has."
                )
            messages.append(
                Message(
                    role, text, bool(message.sounds()), tuple(call.call() for call in calls),
                    name if role == "tool" else "", message.images(),
                )
            )  # fmt: skip
        count = sum(len(message.images) for message in messages)
        if count > MAX_IMAGES:
            raise RequestError(f"the conversation has {count} images, expected at most {MAX_IMAGES}.")
        return messages

    def sight(self) -> SightSettings:
        """How finely to look at images."""
        return SightSettings(image_tokens=self.image_tokens or 0)

    def sampling(self, default: SamplingSettings) -> SamplingSettings:
        """As asked for, or else the checkpoint's own."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
        changes = {name: value for name in names if (value := getattr(self, name)) is not None}
        # vLLM's -1 is our 0.
        return replace(default, **(changes | ({"top_k": max(self.top_k, 0)} if self.top_k is not None else {})))
