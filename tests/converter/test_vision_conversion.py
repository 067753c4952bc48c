"""What a conversion does with the vision encoder of a checkpoint, or without it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import CABOCHON, CONVERT, run_command
from conftest import TINY
from random_checkpoint import RandomWeights, small_config, tensor_shapes, write_random_checkpoint
from refusals import refused

from cabochon.manifest_file import read_manifest
from cabochon.vision_model import VisionModel
from cabochon_convert.checkpoint import CheckpointError
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.recipes import RECIPES

GRAPH_FILES = {"vision_encoder.onnx", "vision_encoder.onnx.data"}


def tensors_of(*parts: str) -> list[str]:
    """Names of the checkpoint's tensors below these modules."""
    names = tensor_shapes(small_config(), with_vestigial=False)
    return sorted(name for name in names if name.split(".")[1] in parts)


def skipped(package: Path) -> list[str]:
    """What was left out, but for vestigial tensors of the decoder."""
    return [name for name in read_manifest(package).source.skipped_tensors if "language_model" not in name]


def test_the_manifest_says_how_images_are_cut_and_where_they_go(random_package: Path) -> None:
    assert read_manifest(random_package).vision == VisionModel(
        patch_size=4,
        pooling_kernel_size=3,
        position_limit=3360,
        soft_token_budgets=(70, 140, 280, 560, 1120),
        default_soft_token_budget=280,
        begin_token=17,
        soft_token=18,
        end_token=19,
    )


def test_every_tensor_of_the_vision_encoder_is_in_the_package(random_package: Path) -> None:
    manifest = read_manifest(random_package)
    assert skipped(random_package) == []
    applied = {precision.tensor for precision in manifest.recipe.precisions}
    matrices = [
        name
        for name in tensors_of("vision_tower", "embed_vision")
        if name.endswith(("_proj.weight", ".linear.weight", "_projection.weight"))
    ]
    assert len(matrices) == 1 + 2 * 7 + 1
    assert applied.issuperset(matrices)


def test_no_vision_leaves_it_out_and_says_so(random_checkpoint: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    result = run_command(CONVERT, random_checkpoint, package, "--no-vision", "--recipe", "float")
    assert result.returncode == 0, result.stderr
    left_out = tensors_of("vision_tower", "embed_vision")
    assert f"{len(left_out)} tensors were left out: this package has no embed_vision, vision_tower." in result.stderr
    assert "images" not in result.stderr
    assert skipped(package) == left_out
    manifest = read_manifest(package)
    assert manifest.vision is None
    assert manifest.audio is not None
    assert manifest.engines["onnx"].vision_encoder is None
    assert not GRAPH_FILES & {path.name for path in package.iterdir()}


def test_text_only_leaves_both_encoders_out(random_checkpoint: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    result = run_command(CONVERT, random_checkpoint, package, "--text-only", "--recipe", "float")
    assert result.returncode == 0, result.stderr
    assert "this package has no audio_tower, embed_audio, embed_vision, vision_tower." in result.stderr
    manifest = read_manifest(package)
    assert (manifest.audio, manifest.vision) == (None, None)
    assert {path.name for path in package.glob("*.onnx")} == {"decoder.onnx", "decoder_genai.onnx"}


def test_a_package_with_vision_loads_and_tells_what_it_holds(random_package: Path) -> None:
    facts = json.loads(run_command(CABOCHON, "info", random_package, "--check", "--json").stdout)
    assert facts["image_tokens"] == [70, 140, 280, 560, 1120]


def test_a_checkpoint_that_does_not_see_converts_as_before(tmp_path: Path) -> None:
    conversion = convert_checkpoint(TINY, tmp_path / "package", ConversionSettings(RECIPES["int4"]))
    assert conversion.manifest.vision is None
    assert conversion.notes == ()
    assert not GRAPH_FILES & {path.name for path in (tmp_path / "package").iterdir()}


def test_a_vision_encoder_without_its_weights_is_refused_by_name(tmp_path: Path) -> None:
    config = small_config()
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", config | {"vision_config": None}, RandomWeights())
    (checkpoint / "config.json").write_text(json.dumps(config))
    with refused(CheckpointError, "no tensor model.vision_tower."):
        convert_checkpoint(checkpoint, tmp_path / "package", ConversionSettings(RECIPES["float"]))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 36}, "patch_embedder"),
        ({"position_embedding_size": 4000}, "position_embedding_table"),
        ({"patch_size": 5}, "input_proj"),
        ({"intermediate_size": 48}, "mlp"),
        ({"num_hidden_layers": 3}, "layers.2"),
        ({"head_dim": 8, "global_head_dim": 8}, "self_attn"),
    ],
    ids=str,
)
def test_weights_that_do_not_fit_the_config_are_refused(
    random_checkpoint: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    config = small_config()
    config["vision_config"] |= change
    checkpoint = shutil.copytree(random_checkpoint, tmp_path / "checkpoint")
    (checkpoint / "config.json").write_text(json.dumps(config))
    with refused(CheckpointError, words):
        convert_checkpoint(checkpoint, tmp_path / "package", ConversionSettings(RECIPES["float"]))
