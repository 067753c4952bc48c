"""T2: verification holds image embeddings against those of transformers, and finds what is wrong with them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from commands import CONVERT, run_command
from conftest import TINY
from vision_reference import load_reference, make_patches, places_of, relative_error

from cabochon.package import open_package
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.made_up_images import made_up_images
from cabochon_convert.progress import Silence
from cabochon_convert.recipes import RECIPES
from cabochon_convert.reference_vision import VisionReference
from cabochon_convert.report import Report
from cabochon_convert.verify import verify_packages


@pytest.fixture(scope="module")
def float_report(random_checkpoint: Path, random_package: Path) -> Report:
    (report,) = verify_packages([random_package], random_checkpoint, Silence())
    return report


def test_the_reference_sees_what_the_plainly_loaded_model_sees(random_checkpoint: Path) -> None:
    plain, images = load_reference(random_checkpoint), [make_patches(24, 24), make_patches(3, 30)]
    for patches, found in zip(images, VisionReference(random_checkpoint, Silence()).embeddings(images), strict=True):
        expected = plain(patches.reshape(-1, patches.shape[-1]), places_of(patches))
        assert relative_error(found, expected) <= 1e-6


def test_images_of_several_shapes_and_budgets_are_compared(float_report: Report, random_package: Path) -> None:
    vision = open_package(random_package).manifest.vision
    assert vision is not None
    tokens = [comparison.tokens for comparison in float_report.images]
    assert [image.tokens for image in made_up_images([vision])] == tokens
    assert max(tokens) > 250
    assert min(tokens) <= 70
    assert all(comparison.relative_error <= 1e-5 for comparison in float_report.images)
    assert float_report.passed
    assert "cosine" in float_report.summary()["image embeddings"]


def test_the_report_and_its_page_show_what_was_seen(float_report: Report, random_package: Path) -> None:
    written = json.loads((random_package / "report.json").read_text())
    assert [image["relative_error"] for image in written["images"]] == [c.relative_error for c in float_report.images]
    page = (random_package / "report.html").read_text()
    assert 'data-plot="images"' in page
    assert all(image["image"] in page for image in written["images"])
    assert "no vision encoder" not in page


def test_a_wrong_weight_of_the_vision_encoder_fails(random_checkpoint: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in random_checkpoint.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    index = json.loads((damaged / "model.safetensors.index.json").read_text())["weight_map"]
    name = next(each for each in index if re.match(r"model\.vision_tower\..*layernorm.*weight", each))
    content = bytearray((damaged / index[name]).read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    first, last = (start + offset for offset in json.loads(content[8:start])[name]["data_offsets"])
    content[first:last] = (np.frombuffer(content[first:last], np.float32) * np.float32(1.01)).tobytes()
    (damaged / index[name]).write_bytes(content)
    convert_checkpoint(damaged, tmp_path / "package", ConversionSettings(RECIPES["float"]))
    (report,) = verify_packages([tmp_path / "package"], random_checkpoint, Silence())
    assert not report.passed
    assert max(comparison.relative_error for comparison in report.images) >= 1e-4
    assert max(comparison.relative_error for comparison in report.audio) <= 1e-5


def test_packages_that_see_and_that_do_not_are_verified_together(random_checkpoint: Path, tmp_path: Path) -> None:
    for name, wishes in (("seeing", ConversionSettings(RECIPES["int8"])), ("blind", None)):
        wishes = wishes or ConversionSettings(RECIPES["int8"], without_vision=True)
        convert_checkpoint(random_checkpoint, tmp_path / name, wishes)
    blind, seeing = verify_packages([tmp_path / "blind", tmp_path / "seeing"], random_checkpoint, Silence())
    assert blind.images == ()
    assert "no vision encoder" in blind.summary()["image embeddings"]
    assert "no vision encoder" in (tmp_path / "blind" / "report.html").read_text()
    # Random weights have no structure that rounding could spare.
    assert min(comparison.cosine for comparison in seeing.images) >= 0.998


def test_the_command_says_so_where_a_package_does_not_see(tmp_path: Path) -> None:
    result = run_command(CONVERT, TINY, tmp_path / "package", "--recipe", "int8", "--text-only", "--verify")
    assert result.returncode == 0, result.stderr
    assert re.search(r"image embeddings: +not compared: the package has no vision encoder", result.stdout)


def test_made_up_images_are_the_same_every_time_and_fit_every_package(random_package: Path) -> None:
    from dataclasses import replace

    vision = open_package(random_package).manifest.vision
    assert vision is not None
    one, other = made_up_images([vision]), made_up_images([vision])
    assert all(np.array_equal(a.patches, b.patches) for a, b in zip(one, other, strict=True))
    few = replace(vision, soft_token_budgets=(70,), default_soft_token_budget=70)
    assert {image.tokens <= 70 for image in made_up_images([vision, few])} == {True}
    assert made_up_images([]) == []
