"""T2: integers behind bfloat16 weights are carried over: the package computes with what the checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from quantized_checkpoint import TABLES, is_on_q4_0_grid, write_q4_0_checkpoint

from cabochon.embedder import open_embedder
from cabochon.package import open_package
from cabochon_convert.checkpoint import open_checkpoint
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.converted import ConvertedModel
from cabochon_convert.grid_integers import find_grids
from cabochon_convert.progress import Silence
from cabochon_convert.quantize import dequantize_matrix
from cabochon_convert.questions import QuestionWriter, made_up_clips
from cabochon_convert.recipes import RECIPES
from cabochon_convert.reference import ReferenceModel
from cabochon_convert.trained_integers import to_blocks
from cabochon_convert.verify import verify_packages

AS_TRAINED = ConversionSettings(RECIPES["as-trained"], accuracy_level=0)


@pytest.fixture(scope="module", params=[True, False], ids=["embedding on the grid", "embedding beside it"])
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, bool]:
    """Checkpoint, package, and whether the token embedding, which is the output matrix too, lies on the grid."""
    folder = tmp_path_factory.mktemp("q4_0")
    checkpoint = write_q4_0_checkpoint(folder / "checkpoint", embedding_on_grid=request.param)
    convert_checkpoint(checkpoint, folder / "package", AS_TRAINED)
    return checkpoint, folder / "package", request.param


def load(checkpoint: Path) -> Any:
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.Gemma4ForConditionalGeneration.from_pretrained(str(checkpoint), dtype=torch.float32)
    return model.requires_grad_(False).eval()


def test_every_matrix_on_the_grid_has_four_bits_and_no_other_has(converted: tuple[Path, Path, bool]) -> None:
    checkpoint, package, embedding_on_grid = converted
    tensors = safetensors.numpy.load_file(checkpoint / "model.safetensors")
    counts = {4: 0, 16: 0, 32: 0}
    for applied in open_package(package).manifest.recipe.precisions:
        on_grid = is_on_q4_0_grid(applied.tensor, tensors[applied.tensor], embedding_on_grid=embedding_on_grid)
        assert (applied.bits == 4) == on_grid, applied.tensor
        assert (applied.algorithm, applied.block_size) == (("as-trained", 32) if on_grid else ("nearest", 0))
        counts[applied.bits] += 1
    assert counts[4] > 30
    assert counts[32] > 20


def test_rows_of_the_tables_are_those_of_the_checkpoint_once_rounded_to_its_type(
    converted: tuple[Path, Path, bool],
) -> None:
    checkpoint, package, embedding_on_grid = converted
    tensors = safetensors.numpy.load_file(checkpoint / "model.safetensors")
    opened = open_package(package)
    embedder = open_embedder(opened, "onnx")
    tokens = [0, 1, 7, opened.manifest.text.vocabulary_size - 1]
    tables = opened.manifest.engines["onnx"]
    assert tables.per_layer_embeddings is not None
    assert tables.per_layer_embeddings.storage == "int4"
    assert (tables.token_embeddings.storage == "int4") == embedding_on_grid
    described = (tables.token_embeddings, tables.per_layer_embeddings)
    for name, rows, table in zip(TABLES, (embedder.tokens, embedder.per_layer), described, strict=True):
        assert rows is not None
        found = (rows.look_up(tokens) / np.float32(table.row_scale)).astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(found, tensors[f"{name}.weight"][tokens])


def relative_errors(package: Path, reference: Any) -> list[float]:
    """Of all logits, to the mean of their magnitudes: a prompt with sound and one without."""
    opened = open_package(package)
    found = ConvertedModel(opened, "onnx")
    writer = QuestionWriter(opened)
    errors = []
    for prompt in (writer.probe(made_up_clips(opened.manifest.audio)[2]), writer.probe(None)):
        inputs: dict[str, Any] = {}
        if prompt.frames is not None:
            inputs["input_features"] = torch.from_numpy(prompt.frames[None])
            inputs["input_features_mask"] = torch.ones((1, len(prompt.frames)), dtype=torch.bool)
        with torch.no_grad():
            expected = np.asarray(reference(input_ids=torch.tensor([prompt.tokens]), **inputs).logits[0])
        logits = found.logits(prompt, len(prompt.tokens))
        errors.append(float(np.abs(logits - expected).mean() / np.abs(expected).mean()))
    return errors


def test_logits_are_those_of_transformers_with_the_integers_times_their_steps(
    converted: tuple[Path, Path, bool],
) -> None:
    checkpoint, package, _ = converted
    reference = load(checkpoint)
    # As stored, the products are rounded to bfloat16 in every layer (2 ** -9 each).
    assert max(relative_errors(package, reference)) <= 0.02
    integers = find_grids(open_checkpoint(checkpoint), Silence())
    assert integers is not None
    for name, weights in reference.named_parameters():
        shape = tuple(weights.shape)
        precision = integers.precision(name, shape) if len(shape) == 2 else None
        if precision is not None:
            parts = [to_blocks(part, precision) for part in integers.rows(name, shape, range(shape[0]))]
            exact = np.concatenate([dequantize_matrix(part, shape[1], precision) for part in parts])
            weights.copy_(torch.from_numpy(exact))
    # float32 sums in another order.
    assert max(relative_errors(package, reference)) <= 1e-5


def test_such_a_package_is_verified_against_its_own_checkpoint(converted: tuple[Path, Path, bool]) -> None:
    checkpoint, package, _ = converted
    ReferenceModel(checkpoint, Silence())
    (report,) = verify_packages([package], checkpoint, Silence())
    assert report.passed
    assert report.recipe == "as-trained"
