"""onnxruntime-genai runs the text decoder of a package as it lies there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime_genai
import pytest
from quantized_checkpoint import MobileWeights, write_mobile_checkpoint
from random_checkpoint import RandomWeights, dense_config, write_random_checkpoint

from cabochon.backend import EngineSettings
from cabochon.decode import decode, prefill
from cabochon.embedder import open_embedder
from cabochon.engines import open_session
from cabochon.package import open_package
from cabochon.prompt import Message, PromptWriter
from cabochon.sampling import Sampler, SamplingSettings, soft_cap
from cabochon.tokenizer import Tokenizer
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.recipes import RECIPES

QUESTIONS = ("Where is the station?", "Translate from English into German: The bag is heavy.")
NEW_TOKENS = 30


@pytest.fixture(scope="module")
def trained_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With 2-bit token embeddings, and scales in float32 among the values of the per-layer table."""
    folder = tmp_path_factory.mktemp("trained")
    checkpoint = write_mobile_checkpoint(folder / "checkpoint", MobileWeights(activation_scale=0))
    return convert_checkpoint(checkpoint, folder / "package", ConversionSettings(RECIPES["as-trained"])).folder


@pytest.fixture(scope="module")
def dense_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without per-layer embeddings, and with fewer key-value heads in full layers."""
    folder = tmp_path_factory.mktemp("dense")
    checkpoint = write_random_checkpoint(folder / "checkpoint", dense_config(), RandomWeights())
    return convert_checkpoint(
        checkpoint, folder / "package", ConversionSettings(RECIPES["int8"], text_only=True)
    ).folder


def prompts(folder: Path) -> list[list[int]]:
    package = open_package(folder)
    tokenizer = Tokenizer(package.path(package.manifest.tokenizer_file))
    writer = PromptWriter(package, tokenizer)
    return [list(writer.write([Message("user", question)])) for question in QUESTIONS]


def our_answer(folder: Path, tokens: list[int]) -> tuple[np.ndarray, list[int]]:
    """Capped logits after the prompt, and the greedy answer with nothing suppressed, as genai knows no such list."""
    package = open_package(folder)
    decoder = open_session(package, "onnx", EngineSettings()).decoder
    embedder = open_embedder(package, "onnx")
    cap = package.manifest.text.final_logit_softcap
    logits = prefill(decoder, embedder.embed(tokens)).copy()
    sampler = Sampler(SamplingSettings(), (), cap)
    stop_tokens = package.manifest.sampling.stop_tokens
    answer = list(decode(decoder, embedder, sampler, logits.copy(), len(tokens), stop_tokens, NEW_TOKENS))
    return soft_cap(logits, cap), answer


def their_answer(model: onnxruntime_genai.Model, tokens: list[int]) -> tuple[np.ndarray, list[int]]:
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=len(tokens) + NEW_TOKENS)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(np.array([tokens], np.int32))
    logits = np.array(generator.get_logits()).reshape(-1)
    while not generator.is_done():
        generator.generate_next_token()
    return logits, [int(token) for token in generator.get_sequence(0)[len(tokens) :]]


def assert_the_same(folder: Path) -> None:
    model = onnxruntime_genai.Model(str(folder))
    stop_tokens = open_package(folder).manifest.sampling.stop_tokens
    for tokens in prompts(folder):
        logits, answer = our_answer(folder, tokens)
        their_logits, theirs = their_answer(model, tokens)
        # The same kernels, but for embeddings, which differ by the order of two multiplications.
        assert np.abs(logits - their_logits).max() <= 1e-4 * np.abs(logits).max()
        assert [token for token in theirs if token not in stop_tokens] == answer


def test_genai_answers_as_the_runtime_does_with_every_recipe(tiny_onnx_package: Path) -> None:
    assert_the_same(tiny_onnx_package)


def test_genai_answers_as_the_runtime_does_where_tables_are_floats(random_package: Path) -> None:
    assert_the_same(random_package)


def test_genai_answers_as_the_runtime_does_where_integers_are_those_of_training(trained_package: Path) -> None:
    assert_the_same(trained_package)


def test_genai_answers_as_the_runtime_does_without_per_layer_embeddings(dense_package: Path) -> None:
    assert_the_same(dense_package)


def test_genai_reads_the_packages_tokenizer(tiny_onnx_package: Path) -> None:
    package = open_package(tiny_onnx_package)
    ours = Tokenizer(package.path(package.manifest.tokenizer_file))
    theirs = onnxruntime_genai.Tokenizer(onnxruntime_genai.Model(str(tiny_onnx_package)))
    for question in QUESTIONS:
        assert [int(token) for token in theirs.encode(question)] == ours.encode(question)
        assert theirs.decode(np.array(ours.encode(question), np.int32)) == question


def test_the_second_graph_stores_no_weights_again(tiny_onnx_package: Path) -> None:
    package = open_package(tiny_onnx_package)
    config = json.loads((tiny_onnx_package / "genai_config.json").read_text())
    name = config["model"]["decoder"]["filename"]
    assert not (tiny_onnx_package / f"{name}.data").exists()
    graph = package.manifest.engines["onnx"].decoder.file
    # Lookup tables for the bits of scales, at most, come on top.
    assert (tiny_onnx_package / name).stat().st_size <= (tiny_onnx_package / graph).stat().st_size + 300_000
