"""T2: image embeddings of the LiteRT graphs are those of transformers' vision tower and embedder, filled up or not."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.interpreter import Interpreter
from google.protobuf import text_format
from litert_lm_builder.litertlm_peek import peek_litertlm_file
from litert_lm_builder.runtime.proto import llm_metadata_pb2
from random_checkpoint import RandomWeights, small_config, tensor_shapes, write_random_checkpoint
from refusals import refused
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
from cabochon.backend_litert_encoders import LitertVisionEncoder
from cabochon.embedder import open_embedder
from cabochon.engines import open_vision_encoder
from cabochon.errors import PackageError, RequestError
from cabochon.manifest_file import read_manifest
from cabochon.package import Package, open_package
from cabochon.vision_model import VisionModel
from cabochon_convert.bundle_litertlm import write_litertlm
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.flatbuffer_litert import describe_graph
from cabochon_convert.matrices import LinearSettings
from cabochon_convert.progress import Silence
from cabochon_convert.recipes import RECIPES
from cabochon_convert.source import local_source, open_source
from cabochon_convert.vision_encoder_litert import build_litert_vision_encoder, build_litert_vision_projector

FLOAT_TOLERANCE = 1e-5
"""Of the largest value: float32 sums in another order; measured 5e-7."""
INT8_COSINE = 0.999
"""Random weights have no structure that rounding could spare."""
BUDGETS = 70, 140


BEGIN_OF_IMAGE, END_OF_IMAGE = 17, 19


def open_graphs(encoder: Path, projector: Path, vision: VisionModel) -> VisionEncoder:
    """An encoder without a package."""
    models = (CompiledModel.from_file(str(path)) for path in (encoder, projector))
    return LitertVisionEncoder(*models, vision)


def signatures(path: Path) -> list[str]:
    return list(CompiledModel.from_file(str(path)).get_signature_list())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that sees with 140 tokens by default, and whose decoder is soon converted."""
    config = small_config(
        layer_types=["sliding_attention", "full_attention"], num_hidden_layers=2, num_kv_shared_layers=0
    )
    config["audio_config"] = None
    folder = write_random_checkpoint(tmp_path_factory.mktemp("checkpoints") / "seeing", config, RandomWeights())
    processor = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps(processor | {"image_seq_length": BUDGETS[-1]}))
    return folder


@pytest.fixture(scope="module")
def package(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages") / "float"
    convert_checkpoint(checkpoint, folder, ConversionSettings(RECIPES["float"], target="litert"))
    return folder


@pytest.fixture(scope="module")
def encoder(package: Path) -> VisionEncoder:
    return open_vision_encoder(open_package(package), "litert", EngineSettings())


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Reference:
    return load_reference(checkpoint)


@pytest.mark.parametrize(("rows", "columns"), [(30, 21), (3, 210), (30, 42), (420, 3)])
def test_an_image_that_fills_a_budget_is_embedded_as_by_the_reference(
    encoder: VisionEncoder, reference: Reference, rows: int, columns: int
) -> None:
    patches = make_patches(rows, columns)
    assert encoder.encode(patches).shape[0] in BUDGETS
    assert compare(encoder, reference, patches) <= FLOAT_TOLERANCE


@pytest.mark.parametrize("grid", [(3, 3), (3, 6), (21, 27), (3, 213), (213, 3), (36, 33)], ids=str)
def test_an_image_that_leaves_room_in_its_budget_is_embedded_as_if_there_were_none(
    encoder: VisionEncoder, reference: Reference, grid: tuple[int, int]
) -> None:
    """The reference is given no patches but those of the image; 71 tokens are the first that need the longer budget."""
    assert compare(encoder, reference, make_patches(*grid)) <= FLOAT_TOLERANCE


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("size", [(640, 480), (31, 500), (500, 31), (1, 200)], ids=str)
def test_a_photograph_of_any_aspect_ratio_is_what_the_processor_of_transformers_makes_of_it(
    encoder: VisionEncoder, reference: Reference, size: tuple[int, int], budget: int
) -> None:
    pixel_values, places, patches = process_noise(size, budget)
    assert relative_error(encoder.encode(patches), reference(pixel_values, places)) <= FLOAT_TOLERANCE


@pytest.mark.parametrize(("grid", "tokens"), [((36, 36), 144), ((3, 423), 141), ((423, 3), 141)], ids=str)
def test_an_image_of_more_tokens_than_the_default_budget_is_refused(
    encoder: VisionEncoder, grid: tuple[int, int], tokens: int
) -> None:
    with refused(RequestError, f"{tokens} tokens", "140", "scale the image down"):
        encoder.encode(make_patches(*grid))


@pytest.mark.parametrize("shape", [(4, 3, 48), (3, 4, 48), (3, 3, 47), (0, 0, 48)], ids=str)
def test_patches_that_the_model_does_not_know_are_refused(encoder: VisionEncoder, shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        encoder.encode(np.zeros(shape, np.float32))


def test_the_manifest_names_no_budget_that_the_graphs_have_no_signature_for(package: Path) -> None:
    manifest = read_manifest(package)
    assert manifest.vision is not None
    assert manifest.vision.soft_token_budgets == BUDGETS
    assert manifest.vision.default_soft_token_budget == BUDGETS[-1]
    engine = manifest.engines["litert"]
    assert engine.vision_encoder == describe_graph(package / "vision_encoder.tflite", "vision_140")
    assert engine.vision_projector == describe_graph(package / "vision_projector.tflite", "vision_adapter_140")
    for budget in BUDGETS:
        images, places = describe_graph(package / "vision_encoder.tflite", f"vision_{budget}").inputs
        assert (images.name, images.dtype, images.shape) == ("images", "float32", (1, 9 * budget, 48))
        assert (places.name, places.dtype, places.shape) == ("positions_xy", "int32", (1, 9 * budget, 2))


def test_every_tensor_of_the_vision_encoder_is_in_the_package(package: Path) -> None:
    manifest = read_manifest(package)
    assert not [name for name in manifest.source.skipped_tensors if "vision" in name]
    matrices = {
        name
        for name in tensor_shapes(small_config(), with_vestigial=False)
        if "vision" in name and name.endswith(("_proj.weight", ".linear.weight", "_projection.weight"))
    }
    assert len(matrices) == 1 + 2 * 7 + 1
    assert matrices <= {precision.tensor for precision in manifest.recipe.precisions}


def test_a_package_that_lost_its_projector_is_refused(package: Path) -> None:
    whole = open_package(package)
    engine = replace(whole.manifest.engines["litert"], vision_projector=None)
    with refused(PackageError, str(package), "convert the checkpoint again"):
        open_vision_encoder(
            Package(package, replace(whole.manifest, engines={"litert": engine})), "litert", EngineSettings()
        )


def test_a_rounded_encoder_of_e2bs_width_stays_close_to_the_reference(tmp_path: Path) -> None:
    """At this width, litert-torch 0.10 folds constants that it leaves alone in narrower graphs. Measured 0.9997."""
    config = small_config()
    config["vision_config"] |= {"hidden_size": 768, "patch_size": 16, "num_hidden_layers": 1}
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", config, RandomWeights())
    vision = VisionModel(
        patch_size=16,
        pooling_kernel_size=3,
        position_limit=210,
        soft_token_budgets=(70,),
        default_soft_token_budget=70,
        begin_token=BEGIN_OF_IMAGE,
        soft_token=BEGIN_OF_IMAGE + 1,
        end_token=END_OF_IMAGE,
    )
    source, settings = open_source(local_source(checkpoint), Silence().advance), LinearSettings(RECIPES["int8"])
    paths = tmp_path / "encoder.tflite", tmp_path / "projector.tflite"
    build_litert_vision_encoder(source, settings, vision, paths[0])
    build_litert_vision_projector(source, settings, vision.soft_token_budgets, paths[1])
    encoder, reference = open_graphs(*paths, vision), load_reference(checkpoint)
    for grid in ((3, 3), (21, 27), (30, 21)):
        patches = make_patches(*grid, values=768)
        expected = reference(patches.reshape(-1, 768), places_of(patches))
        assert least_cosine(encoder.encode(patches), expected) >= INT8_COSINE


def test_a_bundle_for_litert_lm_sees_with_the_default_budget(
    package: Path, reference: Reference, tmp_path: Path
) -> None:
    opened = open_package(package)
    assert opened.manifest.vision is not None
    write_litertlm(opened, tmp_path / "bundle.litertlm")
    peek_litertlm_file(str(tmp_path / "bundle.litertlm"), str(tmp_path), StringIO())
    encoder, projector, end = (
        next(tmp_path.glob(f"*_tf_lite_{part}.tflite"))
        for part in ("vision_encoder", "vision_adapter", "end_of_vision")
    )
    assert [signatures(each) for each in (encoder, projector, end)] == [["vision_140"], ["vision_adapter_140"], ["eoi"]]
    assert compare(open_graphs(encoder, projector, opened.manifest.vision), reference, make_patches(3, 6)) <= (
        FLOAT_TOLERANCE
    )
    row = Interpreter(str(end)).get_signature_runner("eoi")()["eoi_embedding"]
    np.testing.assert_array_equal(row, open_embedder(opened, "litert").tokens.look_up([END_OF_IMAGE])[None])


def test_a_bundle_tells_litert_lm_how_images_are_cut_and_where_they_go(package: Path, tmp_path: Path) -> None:
    write_litertlm(open_package(package), tmp_path / "bundle.litertlm")
    peek_litertlm_file(str(tmp_path / "bundle.litertlm"), str(tmp_path), StringIO())
    metadata = text_format.Parse((tmp_path / "LlmMetadataProto.pbtext").read_text(), llm_metadata_pb2.LlmMetadata())
    gemma = metadata.llm_model_type.gemma4
    tokenizer = json.loads((package / "tokenizer.json").read_text())
    texts = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    assert gemma.start_of_image_token.token_str == texts[BEGIN_OF_IMAGE]
    assert gemma.end_of_image_token.token_str == texts[END_OF_IMAGE]
    assert (gemma.patch_width, gemma.patch_height, gemma.pooling_kernel_size) == (4, 4, 3)
    assert gemma.max_num_patches == 9 * BUDGETS[-1]
