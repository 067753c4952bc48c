"""A conversation that can be held, copied, taken back and saved: what was said is not run again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cabochon.answer import Answer
from cabochon.backend import CacheRows
from cabochon.cache_file import read_cache_file, read_media, write_cache_file
from cabochon.constrained_decoding import AnswerFormat
from cabochon.conversation_file import read_turns, write_turns
from cabochon.errors import PackageError, RequestError
from cabochon.hearing import SoundSource
from cabochon.image import ImageSource
from cabochon.perceived import Perceived, PerceivedVideo
from cabochon.prompt import Message
from cabochon.sampling import SamplingSettings
from cabochon.sight import SightSettings
from cabochon.tools import Tool
from cabochon.video import VideoSource

if TYPE_CHECKING:
    from cabochon.pipeline import Model


class Conversation:
    """Of one model, which may hold several by turns: the keys and values of those that wait lie in memory.

    Greedy answers are those of `Model.chat` with the same messages, but for the rounding of sums in another order.
    """

    def __init__(
        self, model: Model, messages: Sequence[Message] = (), context: tuple[list[int], CacheRows] | None = None
    ) -> None:
        """Made by `Model.start_conversation` and `Model.load_conversation`."""
        self._model = model
        self._messages = tuple(messages)
        self._context = context
        """What it had when another one began."""
        self._asked: tuple[Message, ...] = ()
        """With the question that is being answered."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """All turns, the system's included; of images, videos and sounds what was seen and heard."""
        return self._messages

    def ask(
        self,
        question: str,
        settings: SamplingSettings | None = None,
        max_tokens: int = 1024,
        *,
        stop: str | Sequence[str] = (),
        thinking: bool | int = False,
        tools: Sequence[Tool | Callable[..., object] | Mapping[str, Any]] = (),
        answer_format: AnswerFormat | None = None,
        images: Sequence[ImageSource] = (),
        videos: Sequence[VideoSource] = (),
        sound: SoundSource | None = None,
        sight: SightSettings | None = None,
    ) -> Answer:
        """The next turn; see `Model.chat`. It belongs to the conversation when its answer has ended.

        Images, videos and the sound are read now and encoded: later turns need neither files nor arrays again.

        Raises:
            RequestError: what is asked for cannot be, or has no room in the context; the conversation stays as it was.
            AudioError: the sound cannot be read, is too short or too long.
            ImageError: an image or a video cannot be read.
        """
        question_now = Message("user", question, has_audio=sound is not None, images=images, videos=videos)
        answer = self._model.chat(
            (*self._messages, question_now), settings, max_tokens, sound, stop=stop, thinking=thinking,
            conversation=self, tools=tools, answer_format=answer_format, sight=sight,
        )  # fmt: skip
        asked = self._asked

        def pieces() -> Iterator[str]:
            yield from answer
            said = self._model.quote(answer.text)  # letters that spell a control token are no control token
            self._messages = (*asked, Message("assistant", said, tool_calls=answer.tool_calls))

        return Answer(pieces(), answer.statistics, answer.note, answer.thought, answer.call_reader)

    def rewind(self, turns: int = 1) -> None:
        """Take back the last questions with their answers.

        Raises:
            RequestError: there are not so many.
        """
        places = [place for place, message in enumerate(self._messages) if message.role == "user"]
        if not 1 <= turns <= len(places):
            raise RequestError(f"the conversation has {len(places)} turns, of which {turns} cannot be taken back.")
        self._messages = self._messages[: places[-turns]]

    def clone(self) -> Conversation:
        """Another one that goes on from here by itself."""
        return Conversation(self._model, self._messages, self._model.context_of(self))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, with its keys and values, and the embeddings of what was seen and heard.

        Some kilobytes a token; pictures and sounds themselves are not kept.

        Raises:
            RequestError: the file cannot be written.
        """
        context = self._model.context_of(self)
        tokens, rows = context if context else ([], CacheRows(0, ()))
        about, media = write_turns(self._messages)
        try:
            write_cache_file(Path(path), self._model.identity, tokens, rows, about, media)
        except OSError as error:
            raise RequestError(f"{path} cannot be written ({error.strerror}).") from None

    def perceived(self, messages: tuple[Message, ...]) -> None:
        """The model has read and encoded what comes with the question."""
        self._asked = messages

    def suspend(self, context: tuple[list[int], CacheRows] | None) -> None:
        """The model turns to something else."""
        self._context = context

    def resume(self) -> tuple[list[int], CacheRows] | None:
        """What it had when the model turned to something else; then the model has it again."""
        context, self._context = self._context, None
        return context

    @property
    def waiting(self) -> tuple[list[int], CacheRows] | None:
        """What it has while the model is busy with something else."""
        return self._context


def load_conversation(model: Model, path: str | os.PathLike[str]) -> Conversation:
    """One that was saved with this very package, engine and version.

    Raises:
        PackageError: the file is damaged, or of another model.
    """
    tokens, rows, about = read_cache_file(Path(path), model.identity)
    try:
        messages = read_turns(about, read_media(Path(path)), model.package.manifest.text.hidden_size)
    except (ValueError, RecursionError, RequestError):
        raise PackageError(f"{path} holds no conversation.") from None
    return Conversation(model, messages, (tokens, rows) if tokens else None)


def remember(
    messages: Sequence[Message], seen: Sequence[Perceived | PerceivedVideo], heard: Sequence[Perceived]
) -> tuple[Message, ...]:
    """The messages with what was seen and heard in place of files and pixels.

    Args:
        messages: of a prompt.
        seen: images and then videos of each message, in order.
        heard: sounds in order.
    """
    images = (each for each in seen if isinstance(each, Perceived))
    videos = (each for each in seen if isinstance(each, PerceivedVideo))
    sounds = iter(heard)
    return tuple(
        replace(
            message,
            images=tuple(next(images) for _ in message.images),
            videos=tuple(next(videos) for _ in message.videos),
            heard=next(sounds) if message.has_audio else None,
        )
        for message in messages
    )
