"""Images from anywhere become what transformers' processor makes of them, or are refused in one sentence."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused
from transformers.models.gemma4.image_processing_pil_gemma4 import (
    Gemma4ImageProcessorPil,
    get_aspect_ratio_preserving_size,
)

from cabochon.errors import ImageError, RequestError
from cabochon.image import MAX_PIXELS, ImageSource, read_image, scaled_size
from cabochon.sight import SightSettings
from cabochon.vision_model import VisionModel

BUDGETS = (70, 140, 280, 560, 1120)
VISION = VisionModel(
    patch_size=4,
    pooling_kernel_size=3,
    position_limit=3360,
    soft_token_budgets=BUDGETS,
    default_soft_token_budget=280,
    begin_token=1,
    soft_token=2,
    end_token=3,
)
ORIENTATION = 0x0112


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def saved(image: PIL.Image.Image, kind: str, **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def processed(image: PIL.Image.Image, budget: int) -> np.ndarray:
    """What transformers makes of an image: [rows, columns, values]."""
    processor = Gemma4ImageProcessorPil(patch_size=VISION.patch_size, max_soft_tokens=budget)
    made = processor(image, return_tensors="np", input_data_format="channels_last")
    places = made["image_position_ids"][0]
    columns, rows = places.max(axis=0) + 1
    patches: np.ndarray = made["pixel_values"][0][: rows * columns].reshape(rows, columns, -1)
    return patches


def patches_of(source: ImageSource, budget: int = 70) -> np.ndarray:
    return read_image(source, VISION, budget).patches(VISION)


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from(BUDGETS))
def test_every_size_is_scaled_to_that_of_transformers_within_its_budget(height: int, width: int, budget: int) -> None:
    found = scaled_size(height, width, VISION, budget)
    assert found == get_aspect_ratio_preserving_size(height, width, 4, budget * 9, 3)
    assert 0 < VISION.token_count(found[0] // 4, found[1] // 4) <= budget


@given(st.integers(1, 1 << 20), st.integers(1, 64))
def test_the_longest_strips_are_scaled_to_that_of_transformers(length: int, width: int) -> None:
    for size in ((length, width), (width, length)):
        assert scaled_size(*size, VISION, 70) == get_aspect_ratio_preserving_size(*size, 4, 630, 3)


@given(st.integers(4, 200), st.integers(4, 200), st.sampled_from(BUDGETS[:3]))
def test_pixels_are_those_of_transformers_byte_by_byte(height: int, width: int, budget: int) -> None:
    pixels = noise(height, width, 3)
    expected = processed(PIL.Image.fromarray(pixels), budget)
    np.testing.assert_array_equal(patches_of(pixels, budget), expected.astype(np.float32))
    assert read_image(pixels, VISION, budget).tokens == expected.shape[0] * expected.shape[1] // 9


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"])
def test_every_colour_mode_is_seen_as_by_transformers(mode: str) -> None:
    image = PIL.Image.fromarray(noise(60, 90, 4)).convert("RGB" if mode in ("LAB", "HSV") else "RGBA")
    if mode == "LAB":
        image = PIL.Image.frombytes("LAB", (90, 60), noise(60, 90, 3).tobytes())
    image = image if mode in ("LAB", "RGBA") else image.convert(mode)
    kind = {"YCbCr": "JPEG", "HSV": "TIFF", "CMYK": "TIFF", "LAB": "TIFF"}.get(mode, "PNG")
    if mode == "HSV":
        image, kind = image.convert("RGB"), "BMP"  # no format keeps it
    content = saved(image, kind)
    with PIL.Image.open(io.BytesIO(content)) as opened:
        np.testing.assert_array_equal(patches_of(content), processed(opened, 70).astype(np.float32))


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_a_file_is_read_by_path_and_by_its_bytes(tmp_path: Path, kind: str) -> None:
    content = saved(PIL.Image.fromarray(noise(40, 50, 3)), kind)
    path = tmp_path / "image"
    path.write_bytes(content)
    from_path = patches_of(path)
    np.testing.assert_array_equal(from_path, patches_of(content))
    np.testing.assert_array_equal(from_path, patches_of(str(path)))


def test_what_is_transparent_is_seen_before_white() -> None:
    clear = np.zeros((48, 48, 4), np.uint8)
    assert patches_of(clear).min() == 1
    palette = PIL.Image.new("P", (48, 48))
    palette.putpalette([0, 0, 0] * 256)
    assert patches_of(saved(palette, "PNG", transparency=0)).min() == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_seen_as_the_camera_was_held(orientation: int) -> None:
    upright = PIL.Image.fromarray(noise(48, 96, 3))
    turns = PIL.Image.Transpose
    back = {
        2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM, 5: turns.TRANSPOSE,
        6: turns.ROTATE_90, 7: turns.TRANSVERSE, 8: turns.ROTATE_270,
    }  # fmt: skip
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = orientation
    stored = upright.transpose(back[orientation]) if orientation in back else upright
    np.testing.assert_array_equal(patches_of(saved(stored, "PNG", exif=exif)), patches_of(saved(upright, "PNG")))


def test_sixteen_bits_of_grey_are_not_burnt_out() -> None:
    grey = np.tile(np.linspace(0, 65535, 96).astype(np.uint16), (48, 1))
    found = patches_of(saved(PIL.Image.fromarray(grey), "PNG"))
    np.testing.assert_array_equal(found, patches_of((grey >> 8).astype(np.uint8)))
    assert 0.4 < found.mean() < 0.6


def test_the_first_frame_of_an_animation_counts() -> None:
    first, second = (PIL.Image.new("RGB", (40, 40), colour) for colour in ("red", "blue"))
    content = saved(first, "GIF", save_all=True, append_images=[second])
    np.testing.assert_allclose(patches_of(content)[0, 0, :3], [1, 0, 0])


def bomb() -> bytes:
    """A PNG of a hundred bytes that claims 16 gigapixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 1 << 17, 1 << 17, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def just_too_large() -> bytes:
    return saved(PIL.Image.new("1", (1 << 14, (1 << 12) + 1)), "PNG")


JPEG = saved(PIL.Image.fromarray(noise(100, 100, 3)), "JPEG")
PNG = saved(PIL.Image.fromarray(noise(100, 100, 3)), "PNG")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes"),
        (b"not an image", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "image"),
        (JPEG[: len(JPEG) // 2], "cannot be read as an image"),
        (PNG[: len(PNG) // 2], "cannot be read as an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (bomb(), str(MAX_PIXELS)),
        (just_too_large(), str(MAX_PIXELS)),
    ],
    ids=["empty", "text", "header", "half a JPEG", "half a PNG", "EPS", "SVG", "bomb", "too large"],
)
def test_a_hostile_file_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with refused(ImageError, words, str(path)):
        patches_of(path)
    with refused(ImageError, words, "the image"):
        patches_of(content)


@pytest.mark.parametrize(("make", "words"), [(Path.mkdir, "not a file"), (Path.exists, "does not exist")])
def test_what_is_no_file_is_refused(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    make(tmp_path / "cat.jpg")
    with refused(ImageError, words, "cat.jpg"):
        patches_of(tmp_path / "cat.jpg")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros(9, np.uint8),
    ],
    ids=["floats", "empty", "two channels", "flat"],
)
def test_an_array_that_is_no_image_is_refused(array: np.ndarray) -> None:
    with refused(ImageError, "expected uint8", str(list(array.shape))):
        patches_of(array)


def test_another_object_is_refused() -> None:
    with refused(ImageError, "a int", "path"):
        patches_of(5)  # type: ignore[arg-type]


@given(st.sampled_from([JPEG, PNG, saved(PIL.Image.fromarray(noise(9, 9, 4)), "WEBP")]), st.data())
def test_damaged_bytes_give_an_image_or_one_sentence(content: bytes, data: st.DataObject) -> None:
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = patches_of(bytes(damaged))
    except ImageError as error:
        sentence = str(error)
    else:
        assert found.min() >= 0
        assert found.max() <= 1
        return
    assert len(sentence.splitlines()) == 1
    assert sentence.endswith(".")


@pytest.mark.parametrize("settings", [SightSettings(image_tokens=100), SightSettings(frame_tokens=2000)])
def test_a_budget_that_the_package_does_not_have_is_refused(settings: SightSettings) -> None:
    with refused(RequestError, "tokens for an image", "70, 140, 280, 560, 1120"):
        settings.budgets(VISION)


def test_without_a_wish_the_checkpoint_decides_and_frames_are_small() -> None:
    assert SightSettings().budgets(VISION) == (280, 70)
