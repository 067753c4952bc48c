"""T2: other members of the family give what transformers gives for the same checkpoint, or are refused by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from random_checkpoint import (
    COPIED_FILES,
    RandomWeights,
    dense_config,
    experts_config,
    unified_config,
    write_random_checkpoint,
)
from refusals import refused

import cabochon
from cabochon.arrays import Float32Array
from cabochon.backend import EngineSettings
from cabochon.embedder import open_embedder
from cabochon.engines import open_session
from cabochon.package import open_package
from cabochon.prompt import Message
from cabochon.sampling import soft_cap
from cabochon_convert.checkpoint import CheckpointError
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.progress import Silence
from cabochon_convert.recipes import RECIPES
from cabochon_convert.verify import verify_packages

POSITIONS = 120
"""Several times the sliding window of 24."""
PREFILL = (50, 1, 1, 37, 1, 30)
"""Runs that the positions are cut into."""
FLOAT = ConversionSettings(RECIPES["float"], without_vision=True)


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the family, and its package without rounding and without vision."""

    checkpoint: Path
    package: Path


def convert_member(checkpoint: Path) -> Member:
    return Member(checkpoint, convert_checkpoint(checkpoint, checkpoint.parent / "package", FLOAT).folder)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Member:
    folder = tmp_path_factory.mktemp("dense") / "checkpoint"
    return convert_member(write_random_checkpoint(folder, dense_config(), RandomWeights(seed=3)))


@pytest.fixture(scope="module")
def unified(tmp_path_factory: pytest.TempPathFactory) -> Member:
    """The tensors have the names that transformers gives them when it saves."""
    folder = tmp_path_factory.mktemp("unified")
    drawn = write_random_checkpoint(folder / "drawn", unified_config(), RandomWeights(seed=4))
    saved = folder / "checkpoint"
    load_transformers(drawn).save_pretrained(saved)
    for name in COPIED_FILES:
        shutil.copy(drawn / name, saved / name)
    extractor = transformers.Gemma4UnifiedAudioFeatureExtractor().to_dict()
    (saved / "processor_config.json").write_text(json.dumps({"feature_extractor": extractor}))
    return convert_member(saved)


@pytest.fixture(params=["dense", "unified"])
def member(request: pytest.FixtureRequest) -> Member:
    found: Member = request.getfixturevalue(request.param)
    return found


def load_transformers(checkpoint: Path) -> Any:
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForMultimodalLM.from_pretrained(str(checkpoint), dtype=torch.float32)
    return model.eval()


def random_tokens() -> list[int]:
    """No placeholders of media among them."""
    return [int(token) for token in np.random.default_rng(5).integers(100, 3000, POSITIONS)]


def our_logits(folder: Path, tokens: list[int], runs: tuple[int, ...]) -> Float32Array:
    """Capped logits of all positions, run after run."""
    package = open_package(folder)
    decoder = open_session(package, "onnx", EngineSettings(threads=1)).decoder
    prompt = open_embedder(package, "onnx").embed(tokens)
    parts = []
    for end, count in zip(np.cumsum(runs).tolist(), runs, strict=True):
        part = slice(end - count, end)
        raw = decoder.run(prompt.inputs_embeds[part], prompt.per_layer_inputs[part], end - count, count)
        parts.append(soft_cap(raw, package.manifest.text.final_logit_softcap).copy())
    return np.concatenate(parts)


@pytest.mark.parametrize("runs", [(POSITIONS,), PREFILL], ids=["at once", "in runs"])
def test_logits_equal_those_of_transformers(member: Member, runs: tuple[int, ...]) -> None:
    tokens = random_tokens()
    with torch.no_grad():
        expected = load_transformers(member.checkpoint)(input_ids=torch.tensor([tokens])).logits[0].numpy()
    # float32 sums in another order, relative to the largest logit.
    assert np.abs(our_logits(member.package, tokens, runs) - expected).max() <= 2e-5 * np.abs(expected).max()


def test_a_dense_package_says_what_its_model_has(dense: Member) -> None:
    manifest = open_package(dense.package).manifest
    engine = manifest.engines["onnx"]
    assert (manifest.text.per_layer_input_size, engine.per_layer_embeddings) == (0, None)
    assert (manifest.audio, manifest.vision, engine.audio_encoder, engine.vision_encoder) == (None, None, None, None)
    assert "per_layer_inputs" not in {tensor.name for tensor in engine.decoder.inputs}
    assert {(cache.kind, cache.heads, cache.head_size) for cache in engine.caches} == {
        ("sliding", 2, 16),
        ("full", 1, 32),
    }
    assert len(engine.caches) == manifest.text.layer_count
    assert not (dense.package / "per_layer_embeddings.bin").exists()


def test_verification_passes(member: Member) -> None:
    (report,) = verify_packages([member.package], member.checkpoint, Silence())
    assert report.passed
    assert len(report.layers.decoder) == 7
    # float32 sums in another order.
    assert max(report.layers.decoder) <= 1e-5
    for comparison in report.logits:
        assert comparison.greedy_agreement == comparison.greedy_tokens


@pytest.mark.parametrize(("recipe", "cosine"), [("int8", 0.998), ("int4-mixed", 0.94), ("int2-small", 0.8)])
def test_a_rounded_dense_package_stays_close(dense: Member, tmp_path: Path, recipe: str, cosine: float) -> None:
    settings = ConversionSettings(RECIPES[recipe], text_only=True)
    package = convert_checkpoint(dense.checkpoint, tmp_path / "package", settings)
    tokens = random_tokens()
    with torch.no_grad():
        expected = load_transformers(dense.checkpoint)(input_ids=torch.tensor([tokens])).logits[0].numpy()
    found = our_logits(package.folder, tokens, PREFILL)
    # Activations are rounded to 8 bits as well, which alone costs one in a thousand.
    cosines = (found * expected).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.mean() >= cosine


def test_values_of_a_dense_model_keep_eight_bits_where_they_are_keys(dense: Member, tmp_path: Path) -> None:
    settings = ConversionSettings(RECIPES["int4-mixed"], text_only=True)
    manifest = convert_checkpoint(dense.checkpoint, tmp_path / "package", settings).manifest
    bits = {
        applied.tensor.removeprefix("model.language_model."): applied.bits for applied in manifest.recipe.precisions
    }
    assert (bits["layers.2.self_attn.k_proj.weight"], bits["layers.1.self_attn.k_proj.weight"]) == (8, 4)
    assert bits["layers.1.self_attn.v_proj.weight"] == 8
    assert "layers.2.self_attn.v_proj.weight" not in bits


@pytest.mark.parametrize("samples", [1, 640, 641, 16_000, 33_333])
def test_what_a_unified_model_hears_equals_transformers(unified: Member, samples: int) -> None:
    clip = (0.1 * np.random.default_rng(samples).standard_normal(samples)).astype(np.float32)
    package = open_package(unified.package)
    audio, encoder = package.manifest.audio, open_session(package, "onnx", EngineSettings(threads=1)).audio_encoder
    assert audio is not None
    assert encoder is not None
    found = encoder.encode(audio.make_frames(clip))
    extracted = transformers.Gemma4UnifiedAudioFeatureExtractor()([clip], return_tensors="pt")
    with torch.no_grad():
        features = load_transformers(unified.checkpoint).model.get_audio_features(**extracted)
    expected = features.pooler_output[0].numpy()
    assert found.shape == expected.shape == (audio.token_count(-(-samples // 640)), 64)
    # float32 sums in another order.
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_unified_package_hears_and_answers_as_its_checkpoint(unified: Member) -> None:
    (report,) = verify_packages([unified.package], unified.checkpoint, Silence())
    assert report.passed
    assert [comparison.tokens for comparison in report.audio] == [3, 13, 31, 81, 176]
    assert max(comparison.relative_error for comparison in report.audio) <= 1e-5
    spoken = [comparison for comparison in report.logits if comparison.prompt != "question"]
    assert len(spoken) == len(report.audio)
    for comparison in spoken:
        assert comparison.relative_error <= 2e-5
        assert comparison.greedy_agreement == comparison.greedy_tokens


def test_a_unified_package_takes_sounds_like_any_other(unified: Member, tmp_path: Path) -> None:
    manifest = open_package(unified.package).manifest
    assert manifest.audio is not None
    assert (manifest.audio.log_mel, manifest.audio.frames_per_token) == (None, 1)
    assert manifest.source.architecture == "Gemma4UnifiedForConditionalGeneration"
    model = cabochon.load(unified.package)
    positions = []
    for seconds in (1, 2):
        sound = tmp_path / f"{seconds}.wav"
        soundfile.write(sound, 0.3 * np.sin(np.arange(seconds * 16_000) / 9), 16_000)
        answer = model.transcribe(sound, language="English", max_tokens=4)
        assert "".join(answer)
        assert answer.statistics.audio_seconds == seconds
        positions.append(answer.statistics.prompt_positions)
    assert positions[1] - positions[0] == 25  # of 40 ms each
    assert "".join(model.chat([Message("user", "Hello")], max_tokens=4))


def test_a_unified_projector_stays_float_and_the_decoder_is_rounded(unified: Member, tmp_path: Path) -> None:
    settings = ConversionSettings(RECIPES["int4-mixed"], without_vision=True)
    manifest = convert_checkpoint(unified.checkpoint, tmp_path / "package", settings).manifest
    bits = {applied.tensor: applied.bits for applied in manifest.recipe.precisions}
    assert bits["model.embed_audio.embedding_projection.weight"] == 32
    assert bits["model.language_model.layers.0.mlp.gate_proj.weight"] == 4


def test_images_without_an_encoder_are_refused_until_they_are_left_out(unified: Member, tmp_path: Path) -> None:
    with refused(CheckpointError, "Gemma4UnifiedForConditionalGeneration", "without an encoder", "--no-vision"):
        convert_checkpoint(unified.checkpoint, tmp_path / "package", ConversionSettings(RECIPES["float"]))
    assert not (tmp_path / "package").exists()


def test_images_that_look_ahead_are_refused_until_they_are_left_out(dense: Member, tmp_path: Path) -> None:
    with refused(CheckpointError, "use_bidirectional_attention", "--no-vision"):
        convert_checkpoint(dense.checkpoint, tmp_path / "package", ConversionSettings(RECIPES["float"]))
    assert not (tmp_path / "package").exists()


def test_a_mixture_of_experts_is_refused_by_name(tmp_path: Path) -> None:
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", experts_config(), RandomWeights())
    with refused(CheckpointError, "enable_moe_block", "8 experts", "26B-A4B", "dense"):
        convert_checkpoint(checkpoint, tmp_path / "package", FLOAT)
    assert not (tmp_path / "package").exists()
