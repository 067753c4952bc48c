"""T2: what quantization-aware training left is carried over: the weights and outputs are those of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from quantized_checkpoint import (
    TABLES,
    MobileWeights,
    integers_of,
    mobile_bits,
    stored_weights,
    write_mobile_checkpoint,
)
from refusals import refused
from transformers.integrations.gemma_quant import QuantizedEmbedding, QuantizedLinear

from cabochon.backend import EngineSettings
from cabochon.embedder import open_embedder
from cabochon.engines import open_vision_encoder
from cabochon.manifest import Manifest
from cabochon.package import open_package
from cabochon_convert.checkpoint import CheckpointError
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.converted import ConvertedModel
from cabochon_convert.progress import Silence
from cabochon_convert.questions import Prompt, QuestionWriter, made_up_clips
from cabochon_convert.recipes import RECIPES
from cabochon_convert.reference import ReferenceModel

AS_TRAINED = ConversionSettings(RECIPES["as-trained"], accuracy_level=0)


@pytest.fixture(scope="module")
def mobile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With activations that are rounded coarsely, so that leaving it out would be seen."""
    return write_mobile_checkpoint(tmp_path_factory.mktemp("checkpoints") / "mobile", MobileWeights())


@pytest.fixture(scope="module")
def mobile_package(mobile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages") / "mobile"
    convert_checkpoint(mobile, folder, AS_TRAINED)
    return folder


def load(checkpoint: Path) -> Any:
    """The checkpoint as transformers' own loader reads it.

    Its module of an embedding computes with several scales a row, but transformers 5.23 makes room for one.
    """
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    scale = f"{TABLES[1]}.embedding_scale"
    scales = torch.from_numpy(safetensors.numpy.load_file(checkpoint / "model.safetensors")[scale])
    model = transformers.Gemma4ForConditionalGeneration.from_pretrained(
        str(checkpoint), dtype=torch.float32, ignore_mismatched_sizes=scales.shape[1] > 1
    )
    model.get_submodule(TABLES[1]).embedding_scale = torch.nn.Parameter(scales, requires_grad=False)
    return model.requires_grad_(False).eval()


def prompts_of(package: Path) -> list[Prompt]:
    opened = open_package(package)
    writer = QuestionWriter(opened)
    clips = made_up_clips(opened.manifest.audio)
    return [writer.probe(clips[2]), writer.probe(None)]


def reference_logits(model: Any, prompt: Prompt) -> np.ndarray:
    inputs: dict[str, Any] = {}
    if prompt.frames is not None:
        inputs["input_features"] = torch.from_numpy(prompt.frames[None])
        inputs["input_features_mask"] = torch.ones((1, len(prompt.frames)), dtype=torch.bool)
    with torch.no_grad():
        return np.asarray(model(input_ids=torch.tensor([prompt.tokens]), **inputs).logits[0])


def relative_errors(package: Path, model: Any) -> list[float]:
    """Of all logits, to the largest."""
    converted = ConvertedModel(open_package(package), "onnx")
    errors = []
    for prompt in prompts_of(package):
        expected = reference_logits(model, prompt)
        found = converted.logits(prompt, len(prompt.tokens))
        errors.append(float(np.abs(found - expected).mean() / np.abs(expected).mean()))
    return errors


def test_every_matrix_has_the_very_weights_that_transformers_computes_with(mobile: Path) -> None:
    integers = integers_of(mobile)
    compared = 0
    for name, module in load(mobile).named_modules():
        if isinstance(module, QuantizedLinear):
            shape, expected = (module.out_features, module.in_features), module._dequantize_weights()
        elif isinstance(module, QuantizedEmbedding):
            shape, expected = (module.num_embeddings, module.embedding_dim), module.weight
        else:
            continue
        np.testing.assert_array_equal(stored_weights(integers, f"{name}.weight", shape), np.asarray(expected))
        compared += 1
    assert compared > 70


def test_rows_of_the_tables_are_those_of_transformers(mobile: Path, mobile_package: Path) -> None:
    model = load(mobile)
    opened = open_package(mobile_package)
    embedder = open_embedder(opened, "onnx")
    tokens = [0, 1, 7, opened.manifest.text.vocabulary_size - 1]
    for table, rows, factor in zip(TABLES, (embedder.tokens, embedder.per_layer), (1.0, 2**-0.5), strict=True):
        assert rows is not None
        expected = np.asarray(model.get_submodule(table)(torch.tensor(tokens))) * factor
        np.testing.assert_allclose(rows.look_up(tokens), expected, rtol=1e-6)


def test_the_manifest_says_what_was_carried_over(mobile_package: Path) -> None:
    manifest: Manifest = open_package(mobile_package).manifest
    for applied in manifest.recipe.precisions:
        bits = mobile_bits(applied.tensor.removesuffix(".weight"))
        assert applied.bits == (bits or 32), applied.tensor
        assert (applied.algorithm == "as-trained") == (bits is not None)
    tables = manifest.engines["onnx"]
    assert tables.per_layer_embeddings is not None
    assert (tables.token_embeddings.storage, tables.per_layer_embeddings.storage) == ("int2", "int4")
    assert tables.per_layer_embeddings.block_size == 32


def test_scales_of_integer_caches_are_left_out_and_said_so(mobile: Path, tmp_path: Path) -> None:
    conversion = convert_checkpoint(mobile, tmp_path / "package", AS_TRAINED)
    layers = conversion.manifest.text.layer_count
    assert any(note.startswith(f"{2 * layers} scales for integer caches") for note in conversion.notes)
    assert all(name.startswith("model.language_model.layers.") for name in conversion.manifest.source.skipped_tensors)


@pytest.mark.parametrize("recipe", sorted(name for name, recipe in RECIPES.items() if not recipe.keeps_integers))
def test_no_recipe_rounds_integers_again(mobile: Path, tmp_path: Path, recipe: str) -> None:
    calibration: Any = object()
    with refused(CheckpointError, "already quantized", recipe, "as-trained"):
        convert_checkpoint(mobile, tmp_path / "package", ConversionSettings(RECIPES[recipe], calibration=calibration))


@pytest.mark.parametrize("recipe", ["as-trained", "as-trained-int8"])
def test_a_checkpoint_without_integers_cannot_keep_them(random_checkpoint: Path, tmp_path: Path, recipe: str) -> None:
    with refused(CheckpointError, recipe, "holds no trained integers"):
        convert_checkpoint(random_checkpoint, tmp_path / "package", ConversionSettings(RECIPES[recipe]))


def test_what_training_left_floating_point_may_be_rounded(mobile: Path, tmp_path: Path) -> None:
    manifest = convert_checkpoint(mobile, tmp_path / "package", ConversionSettings(RECIPES["as-trained-int8"])).manifest
    precisions = {applied.tensor: applied for applied in manifest.recipe.precisions}
    assert precisions["model.language_model.per_layer_model_projection.weight"].bits == 8
    assert precisions["lm_head.weight"].bits == 2


def test_the_reference_says_that_it_rounds_no_activations(mobile: Path) -> None:
    with refused(CheckpointError, "activations", "unquantized"):
        ReferenceModel(mobile, Silence())


def test_an_output_matrix_that_is_the_embedding_is_stored_once(mobile_package: Path, tmp_path: Path) -> None:
    assert not (mobile_package / "token_embeddings.bin").exists()
    apart = write_mobile_checkpoint(tmp_path / "apart", MobileWeights(head_is_embedding=False))
    convert_checkpoint(apart, tmp_path / "package", AS_TRAINED)
    assert (tmp_path / "package" / "token_embeddings.bin").exists()
    assert max(relative_errors(tmp_path / "package", load(apart))) <= 0.03


def test_logits_with_rounded_activations_are_those_of_transformers(mobile: Path, mobile_package: Path) -> None:
    # Sums in another order turn a rounded activation here and there by a whole step.
    assert max(relative_errors(mobile_package, load(mobile))) <= 0.03


def test_logits_without_rounded_activations_are_those_of_transformers(tmp_path: Path) -> None:
    weights = MobileWeights(activation_scale=0.0, scale_per_layer=False)
    checkpoint = write_mobile_checkpoint(tmp_path / "checkpoint", weights)
    convert_checkpoint(checkpoint, tmp_path / "package", AS_TRAINED)
    # float32 sums in another order.
    assert max(relative_errors(tmp_path / "package", load(checkpoint))) <= 1e-5


def test_image_embeddings_with_rounded_activations_are_those_of_transformers(
    mobile: Path, mobile_package: Path
) -> None:
    encoder = open_vision_encoder(open_package(mobile_package), "onnx", EngineSettings())
    rows, columns = 12, 15
    patches = np.random.default_rng(0).uniform(0, 1, (rows, columns, 48)).astype(np.float32)
    places = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(1, -1, 2)
    with torch.no_grad():
        pixels = torch.from_numpy(patches.reshape(1, rows * columns, 48))
        (expected,) = load(mobile).get_image_features(pixels, torch.from_numpy(places)).pooler_output
    error = np.abs(encoder.encode(patches) - np.asarray(expected)).mean() / np.abs(np.asarray(expected)).mean()
    # Sums in another order turn a rounded activation here and there by a whole step.
    assert error <= 0.02
