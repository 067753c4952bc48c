"""T2: image embeddings of the converted graph are those of transformers' vision tower and embedder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from random_checkpoint import RandomWeights, small_config, write_random_checkpoint
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from vision_reference import (
    Reference,
    compare,
    least_cosine,
    load_reference,
    make_patches,
    places_of,
    process_noise,
    relative_error,
)

from cabochon.backend import EngineSettings, VisionEncoder
from cabochon.engines import open_vision_encoder
from cabochon.package import open_package
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.recipes import RECIPES

FLOAT_TOLERANCE = 1e-5
"""Of the largest value: float32 sums in another order; measured 5e-7."""


def open_encoder(package: Path) -> VisionEncoder:
    return open_vision_encoder(open_package(package), "onnx", EngineSettings())


@pytest.fixture(scope="module")
def reference(random_checkpoint: Path) -> Reference:
    return load_reference(random_checkpoint)


@pytest.fixture(scope="module")
def encoder(random_package: Path) -> VisionEncoder:
    return open_encoder(random_package)


@pytest.mark.parametrize(
    ("rows", "columns", "tokens"),
    [
        (3, 3, 1),
        (3, 6, 2),
        (24, 24, 64),
        (30, 21, 70),
        (42, 60, 280),
        (3, 3360, 1120),
        (3360, 3, 1120),
    ],
)
def test_embeddings_of_a_float_package_equal_the_reference_at_every_size(
    encoder: VisionEncoder, reference: Reference, rows: int, columns: int, tokens: int
) -> None:
    patches = make_patches(rows, columns)
    assert encoder.encode(patches).shape == (tokens, 64)
    assert compare(encoder, reference, patches) <= FLOAT_TOLERANCE


@pytest.mark.parametrize(
    ("size", "budget"),
    [((640, 480), 280), ((640, 480), 70), ((31, 500), 70), ((500, 31), 70), ((48, 48), 70), ((1, 200), 70)],
    ids=str,
)
def test_a_photograph_is_what_the_processor_of_transformers_makes_of_it(
    encoder: VisionEncoder, reference: Reference, size: tuple[int, int], budget: int
) -> None:
    """The processor fills up to the budget with patches that lie nowhere; the graph needs none."""
    pixel_values, places, patches = process_noise(size, budget)
    expected = reference(pixel_values, places)
    assert len(expected) <= budget
    assert relative_error(encoder.encode(patches), expected) <= FLOAT_TOLERANCE


def test_patches_are_cut_as_the_graphs_documentation_says() -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    processor = Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70, do_resize=False)
    made = processor(PIL.Image.fromarray(image), return_tensors="np")["pixel_values"][0]
    rows, columns, p = 6, 9, 4
    cut = (image / 255).reshape(rows, p, columns, p, 3).transpose(0, 2, 1, 3, 4).reshape(rows * columns, 3 * p * p)
    np.testing.assert_allclose(cut, made[: rows * columns], rtol=1e-6)


def test_bounds_and_standardization_of_the_checkpoint_make_a_difference_that_the_comparison_would_see(
    random_checkpoint: Path, encoder: VisionEncoder
) -> None:
    patches = make_patches(12, 12)
    for change in ({"use_clipped_linears": False}, {"standardize": False}):
        assert compare(encoder, load_reference(random_checkpoint, **change), patches) >= 1e-2


@pytest.mark.parametrize("clip_bound", [None, 2.5])
def test_an_encoder_of_other_sizes_without_bounds_or_standardization_equals_the_reference(
    tmp_path: Path, clip_bound: float | None
) -> None:
    config = small_config()
    config["vision_config"] |= {
        "use_clipped_linears": clip_bound is None,  # bounds that are infinite, or none
        "standardize": False,
        "patch_size": 2,
        "pooling_kernel_size": 2,
        "position_embedding_size": 2240,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "global_head_dim": None,
        "num_hidden_layers": 3,
        "rms_norm_eps": 1e-3,
        "rope_parameters": {"rope_type": "axial", "rope_theta": 30.0},
    }
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", config, RandomWeights(seed=1, clip_bound=clip_bound))
    convert_checkpoint(checkpoint, tmp_path / "package", ConversionSettings(RECIPES["float"]))
    encoder, reference = open_encoder(tmp_path / "package"), load_reference(checkpoint)
    for grid in ((2, 2), (6, 10), (2, 40), (26, 4)):
        assert compare(encoder, reference, make_patches(*grid, values=12)) <= FLOAT_TOLERANCE


@pytest.mark.parametrize(("recipe", "cosine"), [("int8", 0.999), ("int4", 0.93)])
def test_a_rounded_encoder_stays_close_to_the_reference(
    random_checkpoint: Path, reference: Reference, tmp_path: Path, recipe: str, cosine: float
) -> None:
    """Random weights have no structure that rounding could spare: measured 0.9997 and 0.953."""
    convert_checkpoint(random_checkpoint, tmp_path / "package", ConversionSettings(RECIPES[recipe]))
    encoder = open_encoder(tmp_path / "package")
    for grid in ((3, 3), (24, 24), (30, 21)):
        patches = make_patches(*grid)
        expected = reference(patches.reshape(-1, 48), places_of(patches))
        assert least_cosine(encoder.encode(patches), expected) >= cosine
