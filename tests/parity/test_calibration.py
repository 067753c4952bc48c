"""Recipes that calibrate measure the inputs of the right layers, and round by them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from commands import CONVERT, assert_refused, run_command
from conftest import TINY

from cabochon.package import open_package
from cabochon_convert.calibration import Calibration, calibrated_tensors
from cabochon_convert.checkpoint import open_checkpoint
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.evaluation_data import read_evaluation_data
from cabochon_convert.progress import Silence
from cabochon_convert.questions import Prompt
from cabochon_convert.recipes import RECIPES
from cabochon_convert.reference import ReferenceModel
from cabochon_convert.verify import verify_packages

CALIBRATED = RECIPES["int4-calibrated"]
DOWN = "model.language_model.layers.1.mlp.down_proj.weight"
UP = "model.language_model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo sounds as a user would bring his own."""
    folder = tmp_path_factory.mktemp("calibration")
    for reference in json.loads((TINY / "demo" / "references.json").read_text(encoding="utf-8")):
        shutil.copy(TINY / "demo" / reference["file"], folder)
        (folder / reference["file"]).with_suffix(".txt").write_text(reference["en"], encoding="utf-8")
        (folder / reference["file"]).with_suffix(".de.txt").write_text(reference["de"], encoding="utf-8")
    return folder


def test_second_moments_are_those_of_the_layers_inputs_however_the_weights_stream() -> None:
    prompts = [Prompt((5, 900, 1200, 33), None), Prompt((7, 1000), None)]
    model: Any = transformers.Gemma4ForConditionalGeneration.from_pretrained(str(TINY), dtype=torch.float32).eval()
    seen: list[np.ndarray] = []
    model.get_submodule(DOWN.removesuffix(".weight")).register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0][0].numpy().copy())
    )
    with torch.no_grad():
        for prompt in prompts:
            model(input_ids=torch.tensor([prompt.tokens]))
    inputs = np.concatenate(seen)
    for memory in (0, 1 << 40):
        found = dict(ReferenceModel(TINY, Silence(), memory).second_moments(prompts, [DOWN]))
        np.testing.assert_allclose(found[DOWN], inputs.T @ inputs / len(inputs), rtol=1e-3, atol=1e-5)


def test_layers_with_the_same_inputs_are_measured_once() -> None:
    names = calibrated_tensors(open_checkpoint(TINY), CALIBRATED)
    assert DOWN in names
    assert UP not in names
    assert UP.replace("up_proj", "gate_proj") in names
    assert all(CALIBRATED.precision(name).algorithm == "gptq" for name in names)


def test_calibrated_rounding_brings_the_decoder_closer_to_the_checkpoint(data: Path, tmp_path: Path) -> None:
    # What this model says to typed prompts is arbitrary.
    examples = replace(read_evaluation_data(data, "English"), typed=())
    calibration = Calibration([examples], Silence())
    folders = [
        convert_checkpoint(TINY, tmp_path / name, ConversionSettings(RECIPES[name], calibration=calibration)).folder
        for name in ("int4", "int4-calibrated")
    ]
    plain, calibrated = verify_packages(folders, TINY, Silence(), examples)
    # Behind every layer; three answers are too few to compare their divergence.
    assert all(
        ours < 0.8 * theirs for ours, theirs in zip(calibrated.layers.decoder, plain.layers.decoder, strict=True)
    )
    applied = {row.tensor: row.algorithm for row in open_package(folders[1]).manifest.recipe.precisions}
    assert applied[DOWN] == "gptq"


def test_calibration_and_recipe_have_to_fit_each_other(data: Path, tmp_path: Path) -> None:
    missing = run_command(CONVERT, TINY, tmp_path / "package", "--recipe", "int4-calibrated")
    assert_refused(missing, "--calibration")
    needless = run_command(CONVERT, TINY, tmp_path / "package", "--calibration", data)
    assert_refused(needless, "int4", "--calibration")
    assert not (tmp_path / "package").exists()


def test_calibration_data_that_cannot_be_used_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    result = run_command(
        CONVERT, TINY, tmp_path / "package", "--recipe", "int4-calibrated", "--calibration", tmp_path / "nowhere"
    )
    assert_refused(result, "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_data_without_verification_are_not_ignored(data: Path, tmp_path: Path) -> None:
    assert_refused(run_command(CONVERT, TINY, tmp_path / "package", "--data", data), "--verify")
