"""Image embeddings of transformers' vision tower and embedder, and how far others are from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import transformers
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

from cabochon.arrays import Float32Array
from cabochon.backend import VisionEncoder

Reference = Callable[[Float32Array, np.ndarray], Float32Array]


def load_reference(checkpoint: Path, **changes: Any) -> Reference:
    """Pixel values [patches, values] and their columns and rows [patches, 2] to embeddings [tokens, hidden]."""
    transformers.utils.logging.disable_progress_bar()
    config = transformers.Gemma4Config.from_pretrained(str(checkpoint))
    for key, value in changes.items():
        setattr(config.vision_config, key, value)
    model = transformers.Gemma4ForConditionalGeneration.from_pretrained(
        str(checkpoint), config=config, dtype=torch.float32
    )
    model.eval()

    def embed(pixel_values: Float32Array, positions: np.ndarray) -> Float32Array:
        with torch.no_grad():
            features = model.get_image_features(torch.from_numpy(pixel_values[None]), torch.from_numpy(positions[None]))
        return np.asarray(features.pooler_output[0])

    return embed


def make_patches(rows: int, columns: int, values: int = 48) -> Float32Array:
    """Light that changes from patch to patch: float32 [rows, columns, values], 0 to 1."""
    return np.random.default_rng(rows * columns).uniform(0, 1, (rows, columns, values)).astype(np.float32)


def places_of(patches: Float32Array) -> np.ndarray:
    """Column and row of every patch [patches, 2]."""
    rows, columns, _ = patches.shape
    return np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)


def relative_error(found: Float32Array, expected: Float32Array) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def compare(encoder: VisionEncoder, reference: Reference, patches: Float32Array) -> float:
    expected = reference(patches.reshape(-1, patches.shape[-1]), places_of(patches))
    return relative_error(encoder.encode(patches), expected)


def least_cosine(found: Float32Array, expected: Float32Array) -> float:
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((found * expected).sum(axis=1) / norms).min())


def process_noise(size: tuple[int, int], budget: int) -> tuple[Float32Array, np.ndarray, Float32Array]:
    """What transformers' processor makes of noise of so many columns and rows of pixels, with patches of 4 x 4.

    Returns:
        Pixel values and places, filled up to the budget with patches that lie nowhere, and the others as a grid.
    """
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    processor = Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=budget)
    made = processor(PIL.Image.fromarray(noise), return_tensors="np")
    pixel_values, places = made["pixel_values"][0], made["image_position_ids"][0]
    columns, rows = places.max(axis=0) + 1
    patches = np.ascontiguousarray(pixel_values[: rows * columns].reshape(rows, columns, -1), np.float32)
    return pixel_values, places, patches
