from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN_MANIFEST
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from cabochon.backend import EngineSettings
from cabochon.engines import open_vision_encoder
from cabochon.errors import RequestError
from cabochon.manifest_file import manifest_from_text
from cabochon.package import Package, open_package
from cabochon.vision_model import VisionModel


@pytest.fixture(scope="module")
def vision() -> VisionModel:
    vision = manifest_from_text(GOLDEN_MANIFEST.read_text(), "golden").vision
    assert vision is not None
    return vision


@pytest.mark.parametrize(
    "change",
    [
        {"patch_size": 0},
        {"pooling_kernel_size": -3},
        {"position_limit": 0},
        {"position_limit": 3359},
        {"soft_token_budgets": ()},
        {"soft_token_budgets": (0, 280)},
        {"soft_token_budgets": (280, 70)},
        {"soft_token_budgets": (280, 280)},
        {"default_soft_token_budget": 100},
    ],
    ids=str,
)
def test_an_impossible_value_is_refused(vision: VisionModel, change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"size|budget|position_limit"):
        replace(vision, **change)  # type: ignore[arg-type]


@given(st.integers(1, 1120), st.integers(1, 1120))
def test_a_square_of_patches_makes_one_token(vision: VisionModel, rows: int, columns: int) -> None:
    assert vision.token_count(3 * rows, 3 * columns) == rows * columns


@pytest.mark.parametrize(("rows", "columns"), [(0, 3), (3, 0), (-3, 3), (4, 3), (3, 5), (3363, 3), (3, 3363)])
def test_a_grid_that_the_encoder_would_not_take_is_refused(vision: VisionModel, rows: int, columns: int) -> None:
    with pytest.raises(ValueError, match=f"{rows} x {columns}"):
        vision.token_count(rows, columns)


@pytest.mark.parametrize("shape", [(4, 3, 48), (3, 4, 48), (3, 3, 47), (3, 3363, 48), (0, 0, 48)])
def test_the_encoder_refuses_patches_that_do_not_fit(random_package: Path, shape: tuple[int, int, int]) -> None:
    encoder = open_vision_encoder(open_package(random_package), "onnx", EngineSettings())
    with pytest.raises(ValueError, match="expected"):
        encoder.encode(np.zeros(shape, np.float32))


def test_a_package_without_vision_encoder_says_so(random_package: Path) -> None:
    package = open_package(random_package)
    engine = replace(package.manifest.engines["onnx"], vision_encoder=None)
    blind = Package(package.folder, replace(package.manifest, vision=None, engines={"onnx": engine}))
    with refused(RequestError, "no vision encoder", "--no-vision"):
        open_vision_encoder(blind, "onnx", EngineSettings())
    with refused(RequestError, "'litert'", "onnx"):
        open_vision_encoder(package, "litert", EngineSettings())
