"""Reading an image into the pixels that the vision encoder looks at.

Scaled, coloured and cut like transformers 5.23's Gemma4ImageProcessorPil, value for value
(models/gemma4/image_processing_pil_gemma4.py). Its processor on torchvision rounds bicubic sums to other bytes here and
there: by 2 of 255 at most, in less than 1 % of the values of noise.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.errors import ImageError, missing_dependency
from cabochon.vision_model import VisionModel

ImageSource = str | os.PathLike[str] | bytes | np.ndarray
"""An image file, its bytes, or uint8 pixels [rows, columns], [rows, columns, RGB] or [rows, columns, RGBA]."""

MAX_PIXELS = 1 << 26
"""Of an image as it comes, 67 million: 200 MB while it is scaled down. A small file can claim to hold far more."""
# Pillow would hand EPS to Ghostscript, a program that runs whatever such a file says.
_REFUSED_FORMATS = {"EPS"}


@dataclass(frozen=True, slots=True)
class ScaledImage:
    """An image of a size that the encoder takes."""

    pixels: np.ndarray
    """uint8 [pixel rows, pixel columns, RGB]; both sides are multiples of a token's."""
    tokens: int
    """That it makes."""

    def patches(self, vision: VisionModel) -> Float32Array:
        """What the vision encoder takes: float32 [rows, columns, values], 0 to 1."""
        size = vision.patch_size
        rows, columns = self.pixels.shape[0] // size, self.pixels.shape[1] // size
        squares = self.pixels.reshape(rows, size, columns, size, 3).swapaxes(1, 2)
        return squares.reshape(rows, columns, -1).astype(np.float32) / np.float32(255)


def read_image(source: ImageSource, vision: VisionModel, budget: int, name: str = "the image") -> ScaledImage:
    """Read an image as it is meant to be seen, and scale it to a budget with its aspect ratio kept.

    Orientation of the camera (EXIF) is applied, what is transparent is seen before white, grey and palettes become RGB;
    of several frames the first one counts.

    Args:
        source: any format that Pillow reads, but EPS.
        vision: what the model takes.
        budget: tokens at most, one of the model's.
        name: of an image without a path.

    Raises:
        ImageError: it is missing, empty, no image, damaged, or far too large.
        MissingDependencyError: Pillow is not installed.
    """
    library = _pillow()
    shown = str(source) if isinstance(source, str | os.PathLike) else name
    with _explained(shown, library), ExitStack() as files:
        image = _opened(source, shown, library, files)
        _refuse_huge(image.size, shown)
        image = _oriented(image, library)
        height, width = scaled_size(image.size[1], image.size[0], vision, budget)
        pixels = np.asarray(_scaled(_coloured(image, library), (width, height), library))
    side = vision.patch_size
    return ScaledImage(pixels, vision.token_count(height // side, width // side))


def scaled_size(height: int, width: int, vision: VisionModel, budget: int) -> tuple[int, int]:
    """Height and width in pixels of an image that is scaled to a budget.

    The largest multiples of a token's side that keep the aspect ratio and make at most so many tokens; a strip is one
    token thick. It is get_aspect_ratio_preserving_size of transformers, float by float.
    """
    side = vision.patch_size * vision.pooling_kernel_size
    factor = math.sqrt(budget * side**2 / (height * width))
    rows, columns = math.floor(factor * height / side), math.floor(factor * width / side)
    if rows == 0:
        rows, columns = 1, min(width // height, budget)
    elif columns == 0:
        rows, columns = min(height // width, budget), 1
    return rows * side, columns * side


def _pillow() -> Any:
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError:
        raise missing_dependency("Pillow", "onnx") from None
    return PIL


def _opened(source: ImageSource, shown: str, library: Any, files: ExitStack) -> Any:
    """An image of Pillow's that may not be decoded yet, with the file that it comes from among those to be closed."""
    if isinstance(source, np.ndarray):
        fits = source.dtype == np.uint8 and (source.ndim == 2 or (source.ndim == 3 and source.shape[2] in (3, 4)))
        if not fits or 0 in source.shape:
            raise ImageError(
                f"{shown} is {source.dtype} of shape {list(source.shape)}: expected uint8 of shape [rows, columns], "
                "[rows, columns, 3] or [rows, columns, 4]."
            )
        _refuse_huge((source.shape[1], source.shape[0]), shown)
        return library.Image.fromarray(np.ascontiguousarray(source))
    if isinstance(source, bytes):
        if not source:
            raise ImageError(f"{shown} is empty (0 bytes): expected an image such as a JPEG.")
        return _identified(io.BytesIO(source), library)
    if not isinstance(source, str | os.PathLike):
        raise ImageError(f"{shown} is a {type(source).__name__}: expected a file's path, its bytes or a numpy array.")
    path = Path(source)
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise ImageError(f"{path} {what}: expected an image such as a JPEG.")
    if path.stat().st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes): expected an image such as a JPEG.")
    return _identified(files.enter_context(path.open("rb")), library)


def _identified(file: BinaryIO, library: Any) -> Any:
    library.Image.init()
    return library.Image.open(file, formats=[name for name in library.Image.OPEN if name not in _REFUSED_FORMATS])


@contextmanager
def _explained(shown: str, library: Any) -> Iterator[None]:
    """Whatever Pillow says about a file becomes one sentence."""
    try:
        with warnings.catch_warnings():
            # Its warnings are about sizes, which are checked here, and about metadata that is not used.
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"there is not enough memory to read {shown}: scale it down.") from None
    except library.Image.DecompressionBombError:
        raise ImageError(f"{shown} claims more than {MAX_PIXELS} pixels: scale it down.") from None
    except library.UnidentifiedImageError:
        raise ImageError(f"{shown} is not an image that can be read: expected one such as a JPEG or PNG.") from None
    except Exception as error:  # every format has a reader of its own, which fails in its own way
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ImageError(f"{shown} cannot be read as an image ({reason}): save it again.") from None


def _refuse_huge(size: tuple[int, int], shown: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{shown} has {width} x {height} pixels, expected at most {MAX_PIXELS} of them: scale it down."
        )


def _oriented(image: Any, library: Any) -> Any:
    """As the camera was held; turned before it is scaled, like transformers' load_image."""
    try:
        return library.ImageOps.exif_transpose(image)
    except (OSError, MemoryError):
        raise
    except Exception:  # damaged metadata: the pixels may be whole
        return image


def _coloured(image: Any, library: Any) -> Any:
    """As RGB: transformers' convert_to_rgb, but that 16 bits of grey become their upper 8 instead of white."""
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).astype(np.int64)
        return library.Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image, np.float64))
        scale = 255.0 if values.min() >= 0 and values.max() <= 1 else 1.0
        return library.Image.fromarray(np.clip(values * scale, 0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        return library.Image.alpha_composite(library.Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _scaled(image: Any, size: tuple[int, int], library: Any) -> Any:
    if image.size == size:
        return image
    return image.resize(size, resample=library.Image.Resampling.BICUBIC)
