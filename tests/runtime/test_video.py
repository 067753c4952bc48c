"""Videos become one frame a second, at the times that transformers would write, or are refused in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused
from transformers.video_utils import VideoMetadata, default_sample_indices_fn

from cabochon.errors import ImageError
from cabochon.image import read_image
from cabochon.video import ScaledVideo, VideoSource, _upright, choose_frames, read_video
from cabochon.vision_model import VisionModel

VISION = VisionModel(
    patch_size=4,
    pooling_kernel_size=3,
    position_limit=3360,
    soft_token_budgets=(70, 140),
    default_soft_token_budget=140,
    begin_token=1,
    soft_token=2,
    end_token=3,
)
ENDLESS = "ffconcat version 1.0\nfile '/etc/passwd'\n"
PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n"


def write_video(path: Path, seconds: float, rate: int = 10) -> Path:
    """Grey frames, brighter by 4 a second; the upper half is black."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        for number in range(round(seconds * rate)):
            pixels = np.full((64, 96, 3), 4 * (number // rate), np.uint8)
            pixels[:32] = 0
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def brightness(video: ScaledVideo) -> list[float]:
    return [float(frame.pixels[-8:].mean()) for frame in video.frames]


def read(source: VideoSource) -> ScaledVideo:
    return read_video(source, VISION, 70)


@given(st.integers(1, 3600), st.sampled_from([1.0, 7.5, 10.0, 23.976, 24.0, 25.0, 29.97, 30.0, 59.94, 60.0]))
def test_frames_are_chosen_as_by_transformers(count: int, rate: float) -> None:
    metadata = VideoMetadata(total_num_frames=count, fps=rate)
    assert choose_frames(count, rate) == default_sample_indices_fn(metadata, fps=1).tolist()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".mov"])
def test_a_file_gives_a_frame_for_every_second(tmp_path: Path, suffix: str) -> None:
    video = read(write_video(tmp_path / f"film{suffix}", 5))
    assert video.seconds == (0, 1, 2, 3, 4)
    assert {frame.tokens for frame in video.frames} == {6 * 10}
    assert brightness(video) == pytest.approx([0, 4, 8, 12, 16], abs=2)


def test_a_video_that_is_shorter_than_a_second_gives_one_frame(tmp_path: Path) -> None:
    assert read(write_video(tmp_path / "film.mp4", 0.3)).seconds == (0,)


def test_a_whole_minute_is_taken_and_more_is_refused(tmp_path: Path) -> None:
    assert len(read(write_video(tmp_path / "minute.mp4", 60, rate=5)).frames) == 60
    with refused(ImageError, "62 s", "60 s", "film.mp4"):
        read(write_video(tmp_path / "film.mp4", 62, rate=5))


def test_images_are_frames_a_second_apart(tmp_path: Path) -> None:
    pixels = [np.full((30 + number, 40, 3), 10 * number, np.uint8) for number in range(12)]
    for number, each in enumerate(pixels):
        PIL.Image.fromarray(each).save(tmp_path / f"{number:03}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    from_folder, from_list = read(tmp_path), read(pixels)
    assert from_folder.seconds == from_list.seconds == tuple(range(12))
    for number, frame in enumerate(from_folder.frames):
        expected = read_image(pixels[number], VISION, 70).pixels
        np.testing.assert_array_equal(frame.pixels, expected)
        np.testing.assert_array_equal(from_list.frames[number].pixels, expected)


def test_a_frame_is_turned_as_the_phone_was_held() -> None:
    class Frame:
        """What PyAV says about a frame of a phone that was held upright: turn it so far, against the clock."""

        rotation = -90

        @staticmethod
        def to_ndarray(format: str) -> np.ndarray:  # noqa: A002
            assert format == "rgb24"
            return np.arange(6, dtype=np.uint8).reshape(2, 3)

    assert _upright(Frame()).tolist() == [[3, 0], [4, 1], [5, 2]]


@pytest.mark.parametrize("count", [0, 61])
def test_no_images_and_more_than_a_minute_of_them_are_refused(tmp_path: Path, count: int) -> None:
    with refused(ImageError, f"{count} images", "1 to 60"):
        read([np.zeros((8, 8, 3), np.uint8)] * count)
    for number in range(count):
        PIL.Image.new("RGB", (8, 8)).save(tmp_path / f"{number:03}.png")
    with refused(ImageError, f"{count} images", str(tmp_path)):
        read(tmp_path)


def test_a_frame_that_is_no_image_is_named() -> None:
    with refused(ImageError, "image 2 of the video"):
        read([np.zeros((8, 8, 3), np.uint8), b"no image"])


@pytest.mark.parametrize("content", [b"", b"not a video" * 100, ENDLESS.encode(), PLAYLIST.encode(), bytes(5000)])
def test_what_is_no_video_is_refused(tmp_path: Path, content: bytes) -> None:
    for name in ("film.mp4", "film.m3u8", "film.ffconcat"):
        (tmp_path / name).write_bytes(content)
        with refused(ImageError, "cannot be read as a video", name):
            read(tmp_path / name)


def test_a_missing_video_is_refused(tmp_path: Path) -> None:
    with refused(ImageError, "does not exist", "film.mp4"):
        read(tmp_path / "film.mp4")


def test_a_sound_is_refused_as_a_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with refused(ImageError, "holds no video", "sound.mkv"):
        read(tmp_path / "sound.mkv")


@given(st.data())
def test_a_damaged_video_gives_frames_or_one_sentence(tmp_path: Path, data: st.DataObject) -> None:
    whole = tmp_path / "whole.mp4"
    content = bytearray((whole if whole.is_file() else write_video(whole, 3)).read_bytes())
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "film.mp4"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        video = read(path)
    except ImageError as error:
        sentence = str(error)
    else:
        assert 0 < len(video.frames) <= 60
        return
    assert len(sentence.splitlines()) == 1
    assert sentence.endswith(".")


def test_a_video_that_claims_a_million_frames_a_second_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fast.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=1_000_000)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame(32, 32, "yuvj420p")))
        container.mux(stream.encode())
    with refused(ImageError, "frames a second", "at most 240"):
        read_video(path, VISION, 70)


def test_a_damaged_video_never_hangs_however_often_it_is_read() -> None:
    # What FFmpeg says about it comes from its threads. In a process of its own, which can be ended.
    found = Path(__file__).parents[1] / "fuzz" / "corpus" / "video" / "found-hang-of-logging"
    program = (
        "import sys\n"
        "from fuzz.parsers import VISION\n"
        "from cabochon.errors import ImageError\n"
        "from cabochon.video import read_video\n"
        "for _ in range(150):\n"
        "    try:\n"
        "        read_video(sys.argv[1], VISION, 70)\n"
        "    except ImageError:\n"
        "        pass\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    command = [sys.executable, "-c", program, str(found)]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, timeout=200, check=True)
