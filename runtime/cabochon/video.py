"""Reading a video into frames, one for each second."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cabochon.errors import ImageError, missing_dependency
from cabochon.image import MAX_PIXELS, ImageSource, ScaledImage, read_image
from cabochon.vision_model import VisionModel

VideoSource = str | os.PathLike[str] | Sequence[ImageSource]
"""A video file, a folder of images, or images: one for each second."""

FRAMES_PER_SECOND = 1
LONGEST_SECONDS = 60
"""What Gemma 4 was made for, says its card: https://ai.google.dev/gemma/docs/core/model_card_4"""
MOST_FRAMES_PER_SECOND = 240
"""Of a file: all up to the last one that is seen have to be decoded."""
IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# Files alone: some demuxers of FFmpeg's follow a playlist to other files and hosts.
_CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,gif,asf,apng,m4v,mpegvideo,h264,hevc,ivf"


@dataclass(frozen=True, slots=True)
class ScaledVideo:
    """Frames of sizes that the encoder takes."""

    frames: tuple[ScaledImage, ...]
    seconds: tuple[float, ...]
    """When each is seen."""

    def __post_init__(self) -> None:
        if not self.frames or len(self.frames) != len(self.seconds):
            raise ValueError(f"a video of {len(self.frames)} frames at {len(self.seconds)} times")


def read_video(source: VideoSource, vision: VisionModel, budget: int) -> ScaledVideo:
    """Read a frame for every second, each like an image.

    Args:
        source: a file that FFmpeg reads, or images in the order of their names.
        vision: what the model takes.
        budget: tokens at most of a frame, one of the model's.

    Raises:
        ImageError: it is missing, no video, damaged, or lasts longer than a minute.
        MissingDependencyError: PyAV is not installed, and a file is to be read.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.is_dir():
            return _read_file(path, vision, budget)
        images: Sequence[ImageSource] = sorted(each for each in path.iterdir() if each.suffix.lower() in IMAGE_SUFFIXES)
        shown = str(path)
    else:
        images, shown = source, "the video"
    most = LONGEST_SECONDS * FRAMES_PER_SECOND
    if not 0 < len(images) <= most:
        raise ImageError(f"{shown} has {len(images)} images, expected 1 to {most}: one for each second.")
    names = (f"image {number} of {shown}" for number in range(1, len(images) + 1))
    frames = tuple(read_image(image, vision, budget, name) for image, name in zip(images, names, strict=True))
    return ScaledVideo(frames, tuple(number / FRAMES_PER_SECOND for number in range(len(frames))))


def choose_frames(count: int, rate: float) -> list[int]:
    """Which of so many frames to see; transformers' default_sample_indices_fn with one frame a second.

    Args:
        count: of the video.
        rate: frames a second.
    """
    wanted = min(count, max(1, int(count / rate * FRAMES_PER_SECOND)))
    return [number * count // wanted for number in range(wanted)]


def _read_file(path: Path, vision: VisionModel, budget: int) -> ScaledVideo:
    if not path.is_file():
        what = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise ImageError(f"{path} {what}: expected a video such as an MP4, or a folder of images.")
    library = _pyav()
    with _opened(path, library) as container:
        if not container.streams.video:
            raise ImageError(f"{path} holds no video: expected a file such as an MP4.")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise ImageError(f"{path} is damaged, or coded in a way that FFmpeg does not know: convert it to an MP4.")
        if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
            raise ImageError(f"{path} has frames of more than {MAX_PIXELS} pixels: scale it down.")
        rate, count = float(stream.average_rate or 0), stream.frames or _count(container, stream)
        if rate > MOST_FRAMES_PER_SECOND:
            raise ImageError(
                f"{path} has {rate:.0f} frames a second, expected at most {MOST_FRAMES_PER_SECOND}: leave some out."
            )
        if rate <= 0 or count < 1:
            raise ImageError(f"{path} does not say how many frames it has a second: convert it to an MP4.")
        if count / rate > LONGEST_SECONDS + 0.5:
            raise ImageError(
                f"{path} lasts {count / rate:.0f} s, expected at most {LONGEST_SECONDS} s: cut it into parts."
            )
        places = choose_frames(count, rate)[: LONGEST_SECONDS * FRAMES_PER_SECOND]
        stream.thread_type = "AUTO"
        frames = [
            read_image(_upright(frame), vision, budget, f"a frame of {path}")
            for frame in _pick(container, stream, places)
        ]
    if len(frames) < len(places):
        raise ImageError(f"{path} is cut off or damaged: {len(frames)} of {len(places)} seconds can be seen.")
    return ScaledVideo(tuple(frames), tuple(place / rate for place in places))


def _count(container: Any, stream: Any) -> int:
    """Frames of a container that does not say: packets, without decoding them."""
    count = sum(1 for packet in container.demux(stream) if packet.size)
    container.seek(0)
    return count


def _pick(container: Any, stream: Any, places: Sequence[int]) -> Iterator[Any]:
    wanted = set(places)
    for number, frame in enumerate(container.decode(stream)):
        if number in wanted:
            yield frame
        if number >= places[-1]:
            return


def _upright(frame: Any) -> np.ndarray:
    """uint8 [rows, columns, RGB], turned as a phone was held."""
    pixels: np.ndarray = frame.to_ndarray(format="rgb24")
    return np.rot90(pixels, round(frame.rotation / 90) % 4)


@contextmanager
def _opened(path: Path, library: Any) -> Iterator[Any]:
    """A container that FFmpeg has opened; whatever it says about it becomes one sentence."""
    # Of a level, FFmpeg's threads would call into Python to log, and wait for whom waits for them:
    # https://github.com/PyAV-Org/PyAV/issues/751
    library.logging.set_level(None)
    try:
        with path.open("rb") as file, library.open(file, options={"format_whitelist": _CONTAINERS}) as container:
            yield container
    except ImageError:
        raise
    except (library.error.FFmpegError, OSError, ValueError, EOFError) as error:
        reason = str(getattr(error, "strerror", "") or error).strip().rstrip(".") or type(error).__name__
        raise ImageError(f"{path} cannot be read as a video ({reason}).") from None


def _pyav() -> Any:
    try:
        import av
        import av.logging
    except ImportError:
        raise missing_dependency("PyAV", "video") from None
    return av
