from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import CABOCHON, CONVERT, assert_refused, run_command
from random_checkpoint import small_config
from random_drafter import drafter_config, random_drafter, write_drafter
from refusals import refused

import cabochon
from cabochon.engines import ENGINES
from cabochon.errors import RequestError
from cabochon.manifest_file import manifest_from_text, manifest_to_text
from cabochon.package import open_package
from cabochon_convert.checkpoint import CheckpointError
from cabochon_convert.config import read_config
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.drafter_config import read_drafter
from cabochon_convert.recipes import RECIPES
from cabochon_convert.text_config import TextConfig


@pytest.fixture(scope="module")
def target() -> TextConfig:
    return read_config(small_config()).text


@pytest.fixture(scope="module")
def drafter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = drafter_config(small_config())
    return write_drafter(tmp_path_factory.mktemp("drafters") / "drafter", config, random_drafter(config))


def test_a_drafter_reads_the_last_layers_that_own_a_cache(target: TextConfig) -> None:
    drafter = read_drafter(drafter_config(small_config()), target)
    assert drafter.cache_layers == {"sliding": 3, "full": 2}
    assert [layer.cache_layer for layer in drafter.text.layers] == [3, 3, 3, 2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backbone_hidden_size": 1536}, ("hidden size is 1536", "this one's is 64")),
        ({"model_type": "gemma4"}, ("expected Gemma4AssistantForCausalLM",)),
        ({"new_key": 1}, ("unknown key new_key",)),
        ({"num_centroids": 47}, ("num_centroids 47",)),
        ({"centroid_intermediate_top_k": 49}, ("centroid_intermediate_top_k 49",)),
        ({"tie_word_embeddings": False}, ("tie_word_embeddings",)),
        ({"num_centroids": None}, ("num_centroids",)),
        ({"text_config": 3}, ("not an object",)),
        ({"backbone_hidden_size": "64"}, ("backbone_hidden_size",)),
    ],
)
def test_a_drafter_that_is_not_understood_or_does_not_fit_is_refused(
    target: TextConfig, change: dict[str, Any], words: tuple[str, ...]
) -> None:
    with refused(CheckpointError, *words):
        read_drafter(drafter_config(small_config()) | change, target)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 6144}, ("vocabulary is 6144",)),
        ({"sliding_window": 32}, ("sliding window is 32",)),
        ({"head_dim": 24}, ("head size of sliding attention is 24",)),
        ({"global_head_dim": 64}, ("head size of full attention is 64",)),
        ({"num_key_value_heads": 1}, ("key-value heads",)),
        ({"num_kv_shared_layers": 2}, ("num_kv_shared_layers",)),
        ({"hidden_size_per_layer_input": 8}, ("hidden_size_per_layer_input",)),
        ({"use_double_wide_mlp": True}, ("use_double_wide_mlp",)),
        ({"surprise": True}, ("unknown key surprise",)),
        (
            {"rope_parameters": {name: {"rope_theta": 5.0} for name in ("sliding_attention", "full_attention")}},
            ("rotates queries",),
        ),
    ],
)
def test_a_drafter_whose_layers_do_not_fit_is_refused(
    target: TextConfig, change: dict[str, Any], words: tuple[str, ...]
) -> None:
    config = drafter_config(small_config())
    config["text_config"] |= change
    with refused(CheckpointError, *words):
        read_drafter(config, target)


def test_a_package_says_what_its_drafter_is_and_where_it_came_from(
    random_checkpoint: Path, drafter: Path, tmp_path: Path
) -> None:
    convert_checkpoint(random_checkpoint, tmp_path / "package", ConversionSettings(RECIPES["int8"], drafter=drafter))
    manifest = open_package(tmp_path / "package").manifest
    described = manifest.engines["onnx"].drafter
    assert described is not None
    assert (described.source.name, described.recommended_drafts) == ("drafter", 2)
    assert described.cache_layers == {"sliding": 3, "full": 2}
    assert described.source.skipped_tensors == ()
    applied = {each.tensor: each.bits for each in manifest.recipe.precisions if each.tensor.startswith("drafter.")}
    assert set(applied.values()) == {8}
    assert len(applied) == 4 * 5 + 4
    assert manifest_from_text(manifest_to_text(manifest), "here") == manifest


def test_a_package_for_litert_says_the_same_of_its_drafter(drafting_litert_package: Path) -> None:
    manifest = open_package(drafting_litert_package).manifest
    described = manifest.engines["litert"].drafter
    assert described is not None
    assert described.graph.file == "drafter.tflite"
    assert (described.source.name, described.recommended_drafts) == ("drafter", 2)
    assert described.cache_layers == {"sliding": 3, "full": 2}
    assert described.source.skipped_tensors == ()
    applied = [each.tensor for each in manifest.recipe.precisions if each.tensor.startswith("drafter.")]
    assert len(applied) == 4 * 5 + 4
    facts = json.loads(run_command(CABOCHON, "info", drafting_litert_package, "--json").stdout)
    assert (facts["drafter"], facts["recommended_drafts"]) == ("drafter", 2)
    assert facts["file_sizes"]["drafter.tflite"] > 0


def test_a_package_without_a_drafter_has_no_key_for_it(random_package: Path) -> None:
    engine = json.loads((random_package / "manifest.json").read_text())["engines"]["onnx"]
    assert "drafter" not in engine
    assert "hidden_states" not in {output["name"] for output in engine["decoder"]["outputs"]}
    assert "drafter" not in {path.stem for path in random_package.iterdir()}


def test_an_ordering_that_forgets_a_token_is_refused(random_checkpoint: Path, tmp_path: Path) -> None:
    config = drafter_config(small_config())
    model = random_drafter(config)
    model.masked_embedding.token_ordering[0] = model.masked_embedding.token_ordering[1]
    damaged = write_drafter(tmp_path / "drafter", config, model)
    with refused(CheckpointError, "token_ordering"):
        convert_checkpoint(
            random_checkpoint, tmp_path / "package", ConversionSettings(RECIPES["float"], drafter=damaged)
        )
    assert not (tmp_path / "package").exists()


def test_a_drafter_stored_in_bfloat16_is_the_same_at_float(random_checkpoint: Path, tmp_path: Path) -> None:
    config = drafter_config(small_config())
    model = random_drafter(config).to(torch.bfloat16)
    sizes = []
    for name, dtype in (("narrow", torch.bfloat16), ("wide", torch.float32)):
        folder = write_drafter(tmp_path / name, config, model, dtype)
        package = tmp_path / f"package-{name}"
        convert_checkpoint(random_checkpoint, package, ConversionSettings(RECIPES["float"], drafter=folder))
        sizes.append(np.fromfile(package / "drafter.onnx.data", np.uint8))
    np.testing.assert_array_equal(*sizes)


def test_the_command_refuses_what_cannot_be_in_one_sentence(drafter: Path, tmp_path: Path) -> None:
    model = "models/tiny"
    for engine in ENGINES:
        result = run_command(CONVERT, model, tmp_path / "package", "--drafter", drafter, "--target", engine)
        assert_refused(result, "hidden size is 64", "160")
    result = run_command(CONVERT, model, tmp_path / "package", "--drafter-revision", "main")
    assert_refused(result, "--drafter-revision")
    result = run_command(CONVERT, model, tmp_path / "package", "--drafter", "models/tiny")
    assert_refused(result, "expected Gemma4AssistantForCausalLM")
    assert not (tmp_path / "package").exists()


@pytest.mark.parametrize(("drafts", "word"), [(2, "no drafter"), (9, "0 (none) to 8"), (-1, "0 (none) to 8")])
def test_drafts_without_a_drafter_or_too_many_are_refused(random_package: Path, drafts: int, word: str) -> None:
    with refused(RequestError, word):
        cabochon.load(random_package, drafts=drafts)
