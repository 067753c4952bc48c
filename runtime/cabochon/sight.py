"""What a model sees in a conversation: images and videos to the embeddings that take their places in the prompt."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cabochon.backend import VisionEncoder
from cabochon.errors import RequestError
from cabochon.image import ScaledImage, read_image
from cabochon.perceived import Perceived, PerceivedVideo, mark_of
from cabochon.prompt import Message
from cabochon.video import ScaledVideo, read_video
from cabochon.vision_model import VisionModel

MAX_KEPT_TOKENS = 8192
"""Of images that are not encoded again when a conversation goes on: 50 MB for E2B."""

Seen = ScaledImage | ScaledVideo | Perceived | PerceivedVideo


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
        self._kept: OrderedDict[int, Perceived] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, messages: Sequence[Message], settings: SightSettings) -> list[Seen]:
        """The images, then the videos of every message, in order and scaled, if they were not encoded before.

        Raises:
            ImageError: one of them cannot be read.
        """
        image_budget, frame_budget = settings.budgets(self.vision)
        count = sum(len(message.images) for message in messages)
        seen: list[Seen] = []
        for message in messages:
            for image in message.images:
                number = sum(isinstance(each, ScaledImage | Perceived) for each in seen) + 1
                name = "the image" if count == 1 else f"image {number}"
                seen.append(
                    image if isinstance(image, Perceived) else read_image(image, self.vision, image_budget, name)
                )
            for video in message.videos:
                seen.append(
                    video if isinstance(video, PerceivedVideo) else read_video(video, self.vision, frame_budget)
                )
        return seen

    def encode(self, seen: Sequence[Seen]) -> list[Perceived | PerceivedVideo]:
        """What becomes of each of them."""
        return [self._perceived(each) for each in seen]

    def _perceived(self, seen: Seen) -> Perceived | PerceivedVideo:
        match seen:
            case ScaledImage():
                return self._encode(seen)
            case ScaledVideo():
                return PerceivedVideo(tuple(map(self._encode, seen.frames)), seen.seconds)
        return seen

    def _encode(self, image: ScaledImage) -> Perceived:
        mark = mark_of("image", image.pixels)
        with self._lock:
            if mark not in self._kept:
                self._encoder = self._encoder or self._load()
                self._kept[mark] = Perceived(self._encoder.encode(image.patches(self.vision)).copy(), mark)
                while len(self._kept) > 1 and sum(each.tokens for each in self._kept.values()) > MAX_KEPT_TOKENS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(mark)
            return self._kept[mark]


def flatten(seen: Sequence[Perceived | PerceivedVideo]) -> list[Perceived]:
    """Images, and the frames of videos."""
    return [image for each in seen for image in (each.frames if isinstance(each, PerceivedVideo) else (each,))]
