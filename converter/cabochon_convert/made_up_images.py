"""Images that verification looks at: made up, the same every time, of several shapes and budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cabochon.arrays import Float32Array
from cabochon.image import read_image
from cabochon.vision_model import VisionModel

GLYPH_ROWS, GLYPH_COLUMNS, GLYPH_SCALE = 7, 5, 3


@dataclass(frozen=True, slots=True)
class MadeUpImage:
    """An image as vision encoders take it."""

    name: str
    patches: Float32Array
    """[rows, columns, values], 0 to 1"""
    tokens: int
    """That it makes."""


def made_up_images(models: Sequence[VisionModel]) -> list[MadeUpImage]:
    """A gradient, noise, something like a page of text, and a strip.

    Args:
        models: that are to see the same; none makes no images. No image has more tokens than the default budget,
            because the reference's attention grows with their square.
    """
    if not models:
        return []
    vision = models[0]
    budgets = [
        budget
        for budget in vision.soft_token_budgets
        if budget <= vision.default_soft_token_budget and all(budget in model.soft_token_budgets for model in models)
    ]
    if not budgets:
        return []
    small, middle, large = budgets[0], budgets[len(budgets) // 2], budgets[-1]
    pictures = (
        ("gradient", _gradient(480, 640), large),
        ("noise", _noise(900, 300), small),
        ("text", _text(320, 1200), middle),
        ("text", _text(640, 480), large),
        ("strip", _gradient(30, 900), small),
    )
    images = []
    for kind, pixels, budget in pictures:
        scaled = read_image(pixels, vision, budget)
        name = f"{kind} of {pixels.shape[1]} x {pixels.shape[0]}, {scaled.tokens} tokens"
        images.append(MadeUpImage(name, scaled.patches(vision), scaled.tokens))
    return images


def _gradient(rows: int, columns: int) -> np.ndarray:
    """Red from left to right, green from top to bottom, blue in waves."""
    y, x = np.mgrid[0:rows, 0:columns]
    blue = 127.5 + 127.5 * np.sin(2 * np.pi * (x + y) / 97)
    return np.stack([255 * x / columns, 255 * y / rows, blue], axis=-1).astype(np.uint8)


def _noise(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def _text(rows: int, columns: int) -> np.ndarray:
    """Black glyphs of no script in lines on white."""
    generator = np.random.default_rng(6)
    cell = (GLYPH_ROWS + 3) * GLYPH_SCALE, (GLYPH_COLUMNS + 1) * GLYPH_SCALE
    lines, letters = rows // cell[0], columns // cell[1]
    ink = np.zeros((lines, GLYPH_ROWS + 3, letters, GLYPH_COLUMNS + 1), bool)
    glyphs = generator.random((lines, GLYPH_ROWS, letters, GLYPH_COLUMNS)) < 0.45
    # About every sixth place is a space between words.
    ink[:, :GLYPH_ROWS, :, :GLYPH_COLUMNS] = glyphs & (generator.random((lines, 1, letters, 1)) > 0.17)
    drawn = ink.reshape(lines * (GLYPH_ROWS + 3), letters * (GLYPH_COLUMNS + 1))
    page = np.full((rows, columns), 255, np.uint8)
    scaled = drawn.repeat(GLYPH_SCALE, 0).repeat(GLYPH_SCALE, 1)
    page[: scaled.shape[0], : scaled.shape[1]][scaled] = 20
    return np.repeat(page[:, :, None], 3, axis=2)
