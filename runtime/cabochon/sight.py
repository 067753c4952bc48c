"""What a model sees in a conversation: images and videos to the embeddings that take their places in the prompt."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.backend import VisionEncoder
from cabochon.errors import RequestError
from cabochon.image import ScaledImage, read_image
from cabochon.prompt import Message
from cabochon.video import ScaledVideo, read_video
from cabochon.vision_model import VisionModel

MAX_KEPT_TOKENS = 8192
"""Of images that are not encoded again when a conversation goes on: 50 MB for E2B."""


@dataclass(frozen=True, slots=True)
class SightSettings:
    """How finely a model looks. More tokens show more, and take longer."""

    image_tokens: int = 0
    """At most, of an image: one of the budgets that the manifest names; 0: the checkpoint's own."""
    frame_tokens: int = 0
    """At most, of a frame of a video; 0: the smallest budget, as in transformers."""

    def budgets(self, vision: VisionModel) -> tuple[int, int]:
        """Of an image and of a frame.

        Raises:
            RequestError: the package does not have such a budget.
        """
        budgets = vision.soft_token_budgets
        for asked in (self.image_tokens, self.frame_tokens):
            if asked and asked not in budgets:
                choices = ", ".join(map(str, budgets))
                raise RequestError(
                    f"{asked!r} tokens for an image were asked for, this package takes one of {choices}."
                )
        return self.image_tokens or vision.default_soft_token_budget, self.frame_tokens or budgets[0]


class Sight:
    """Looks at images: the encoder is loaded at the first one, and one that was seen lately is not encoded again."""

    def __init__(self, vision: VisionModel, load: Callable[[], VisionEncoder]) -> None:
        """Args: load: the encoder of the package."""
        self.vision = vision
        self._load = load
        self._encoder: VisionEncoder | None = None
        self._kept: OrderedDict[bytes, Float32Array] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, messages: Sequence[Message], settings: SightSettings) -> list[ScaledImage | ScaledVideo]:
        """The images, then the videos of every message, in order and scaled.

        Raises:
            ImageError: one of them cannot be read.
        """
        image_budget, frame_budget = settings.budgets(self.vision)
        count = sum(len(message.images) for message in messages)
        seen: list[ScaledImage | ScaledVideo] = []
        for message in messages:
            for image in message.images:
                number = sum(isinstance(each, ScaledImage) for each in seen) + 1
                name = "the image" if count == 1 else f"image {number}"
                seen.append(read_image(image, self.vision, image_budget, name))
            seen += [read_video(video, self.vision, frame_budget) for video in message.videos]
        return seen

    def encode(self, seen: Sequence[ScaledImage | ScaledVideo]) -> tuple[Float32Array | None, tuple[int, ...]]:
        """Embeddings [tokens, hidden] of all images and frames, None where there are none; and a mark for each token,
        below 0, that other images do not have.
        """
        images = [image for each in seen for image in (each.frames if isinstance(each, ScaledVideo) else (each,))]
        digests = [_digest(image) for image in images]
        parts = [self._encode(image, digest) for image, digest in zip(images, digests, strict=True)]
        marks = [-1 - int.from_bytes(digest[:7], "big") for digest in digests]
        per_token = tuple(mark for mark, part in zip(marks, parts, strict=True) for _ in range(len(part)))
        return (np.concatenate(parts) if parts else None), per_token

    def _encode(self, image: ScaledImage, digest: bytes) -> Float32Array:
        with self._lock:
            if digest not in self._kept:
                self._encoder = self._encoder or self._load()
                self._kept[digest] = self._encoder.encode(image.patches(self.vision)).copy()
                while len(self._kept) > 1 and sum(map(len, self._kept.values())) > MAX_KEPT_TOKENS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(digest)
            return self._kept[digest]


def _digest(image: ScaledImage) -> bytes:
    return hashlib.sha256(repr(image.pixels.shape).encode() + image.pixels.tobytes()).digest()
