"""The turns of a conversation in a file: texts as JSON, and of images and sounds their embeddings.

With the embeddings a conversation goes on wherever it is taken back to; the pictures themselves are not kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.json_dataclass import NOT_IN_JSON, JsonMismatchError, from_json
from cabochon.perceived import Perceived, PerceivedVideo
from cabochon.prompt import Message


@dataclass(frozen=True, slots=True)
class _Turn:
    """A message, and the marks of what was seen and heard with it."""

    message: Message
    images: tuple[int, ...] = ()
    videos: tuple[_Video, ...] = ()
    sound: int | None = None


@dataclass(frozen=True, slots=True)
class _Video:
    marks: tuple[int, ...]
    seconds: tuple[float, ...]


def write_turns(messages: Sequence[Message]) -> tuple[str, list[Float32Array]]:
    """JSON, and embeddings in the order of the marks in it.

    Args:
        messages: whose images, videos and sounds were all perceived.
    """
    turns = []
    media: list[Float32Array] = []

    def mark(perceived: Perceived) -> int:
        media.append(perceived.embeddings)
        return perceived.mark

    for message in messages:
        turn: dict[str, Any] = {"message": _texts(message)}
        turn["images"] = [mark(image) for image in message.images if isinstance(image, Perceived)]
        turn["videos"] = [
            {"marks": [mark(frame) for frame in video.frames], "seconds": list(video.seconds)}
            for video in message.videos
            if isinstance(video, PerceivedVideo)
        ]
        turn["sound"] = mark(message.heard) if message.heard else None
        turns.append(turn)
    return json.dumps(turns, ensure_ascii=False), media


def read_turns(about: str, media: Sequence[np.ndarray], hidden_size: int) -> list[Message]:
    """The messages again.

    Raises:
        ValueError: they are not what was written.
    """
    found = json.loads(about)
    if not isinstance(found, list):
        raise JsonMismatchError("no list")
    left = iter(media)
    messages = [_message(from_json(_Turn, each), left, hidden_size) for each in found]
    if next(left, None) is not None:
        raise ValueError("there are more embeddings than images and sounds")
    return messages


def _texts(message: Message) -> dict[str, Any]:
    kept = [each.name for each in fields(Message) if each.metadata != NOT_IN_JSON]
    texts = {name: getattr(message, name) for name in kept}
    return texts | {"tool_calls": [asdict(call) for call in message.tool_calls]}


def _message(turn: _Turn, media: Iterator[np.ndarray], hidden_size: int) -> Message:
    def perceived(mark: int) -> Perceived:
        embeddings = next(media, None)
        if embeddings is None or embeddings.ndim != 2 or embeddings.shape[1] != hidden_size:
            raise ValueError("embeddings of an image or a sound are missing, or of another model")
        return Perceived(embeddings, mark)

    images = tuple(map(perceived, turn.images))
    videos = tuple(PerceivedVideo(tuple(map(perceived, video.marks)), video.seconds) for video in turn.videos)
    heard = None if turn.sound is None else perceived(turn.sound)
    if turn.message.has_audio != (heard is not None):
        raise ValueError("a message has a place for a sound and no sound, or the other way round")
    return replace(turn.message, images=images, videos=videos, heard=heard)
