"""A conversation that can be held, copied, taken back and saved: what was said is not run again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cabochon.answer import Answer
from cabochon.backend import CacheRows
from cabochon.cache_file import read_cache_file, write_cache_file
from cabochon.constrained_decoding import AnswerFormat
from cabochon.errors import PackageError, RequestError
from cabochon.image import ImageSource
from cabochon.json_dataclass import NOT_IN_JSON, JsonMismatchError, from_json
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

    @property
    def messages(self) -> tuple[Message, ...]:
        """All turns, the system's included."""
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
        sight: SightSettings | None = None,
    ) -> Answer:
        """The next turn; see `Model.chat`. It belongs to the conversation when its answer has ended."""
        messages = (*self._messages, Message("user", question, images=images, videos=videos))
        answer = self._model.chat(
            messages, settings, max_tokens, stop=stop, thinking=thinking, conversation=self, tools=tools,
            answer_format=answer_format, sight=sight,
        )  # fmt: skip

        def pieces() -> Iterator[str]:
            yield from answer
            self._messages = (*messages, Message("assistant", answer.text, tool_calls=answer.tool_calls))

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
        """Write it to a file, with its keys and values: some kilobytes a token.

        Raises:
            RequestError: the file cannot be written, or there are images in the conversation.
        """
        if any(message.images or message.videos for message in self._messages):
            raise RequestError("the conversation holds images, which a file cannot keep so far: take them back first.")
        context = self._model.context_of(self)
        tokens, rows = context if context else ([], CacheRows(0, ()))
        kept = [each.name for each in fields(Message) if each.metadata != NOT_IN_JSON]
        turns = [{name: value for name, value in asdict(each).items() if name in kept} for each in self._messages]
        about = json.dumps(turns, ensure_ascii=False)
        try:
            write_cache_file(Path(path), self._model.identity, tokens, rows, about)
        except OSError as error:
            raise RequestError(f"{path} cannot be written ({error.strerror}).") from None

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
        found = json.loads(about)
        if not isinstance(found, list):
            raise JsonMismatchError("no list")
        messages = [from_json(Message, each) for each in found]
    except (ValueError, RecursionError, JsonMismatchError, RequestError):
        raise PackageError(f"{path} holds no conversation.") from None
    return Conversation(model, messages, (tokens, rows) if tokens else None)
