"""Caches of 8-bit integers: the same answers, but for the rounding of keys and values, in a quarter of the memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commands import CONVERT, assert_refused, run_command
from conftest import TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_checkpoint import RandomWeights, small_config, write_random_checkpoint
from refusals import refused

import cabochon
from cabochon.backend import Decoder, EngineSettings
from cabochon.engines import open_session
from cabochon.manifest_file import manifest_from_text, manifest_to_text
from cabochon.memory_cost import compute_memory_cost
from cabochon.package import Package, open_package
from cabochon_convert.checkpoint import CheckpointError
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.integer_caches_onnx import mixing_matrix
from cabochon_convert.layers_onnx import read_layer_outputs
from cabochon_convert.questions import Prompt
from cabochon_convert.recipes import RECIPES

POSITIONS = 700
"""More than sliding layers hold."""


@pytest.fixture(scope="module", params=["models/tiny", "two key-value heads", "one key-value head"])
def packages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Package, Package]:
    """One checkpoint with caches of floats and of integers."""
    folder = tmp_path_factory.mktemp("caches")
    checkpoint = TINY
    if request.param != "models/tiny":
        config = small_config(num_key_value_heads=1 + (request.param == "two key-value heads"))
        checkpoint = write_random_checkpoint(folder / "checkpoint", config, RandomWeights())
    floats, integers = (
        open_package(
            convert_checkpoint(checkpoint, folder / kind, ConversionSettings(RECIPES["float"], kv_cache=kind)).folder
        )
        for kind in ("float32", "int8")
    )
    return floats, integers


@pytest.fixture(scope="module")
def decoders(packages: tuple[Package, Package]) -> tuple[Decoder, Decoder]:
    floats, integers = (open_session(package, "onnx", EngineSettings(threads=1)).decoder for package in packages)
    return floats, integers


@pytest.fixture(scope="module")
def inputs(packages: tuple[Package, Package], decoders: tuple[Decoder, Decoder]) -> tuple[np.ndarray, np.ndarray]:
    text, generator = packages[0].manifest.text, np.random.default_rng(7)
    count = min(POSITIONS, decoders[0].capacity)
    width = text.layer_count * text.per_layer_input_size
    embeddings = generator.standard_normal((count, text.hidden_size), dtype=np.float32)
    return embeddings, generator.standard_normal((count, width), dtype=np.float32)


def run(decoder: Decoder, inputs: tuple[np.ndarray, np.ndarray], cuts: list[int]) -> np.ndarray:
    """Logits of all positions."""
    ends = [*cuts, len(inputs[0])]
    parts = []
    for start, end in zip([0, *cuts], ends, strict=True):
        part = slice(start, end)
        parts.append(decoder.run(inputs[0][part], inputs[1][part], start, end - start).copy())
    return np.concatenate(parts)


def test_logits_are_those_of_float_caches_but_for_the_rounding_of_keys_and_values(
    decoders: tuple[Decoder, Decoder], inputs: tuple[np.ndarray, np.ndarray]
) -> None:
    cuts = [1, 2, 100, 104, *range(250, len(inputs[0]), 250)]
    floats, integers = (run(decoder, inputs, cuts) for decoder in decoders)
    difference = np.sqrt(np.mean(np.square(floats - integers))) / np.std(floats)
    # Equal logits would mean that nothing was rounded.
    assert 1e-4 < difference < 0.03
    assert np.mean(floats.argmax(-1) == integers.argmax(-1)) > 0.93


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_prompt_may_be_cut_anywhere(
    decoders: tuple[Decoder, Decoder], inputs: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    short = inputs[0][:150], inputs[1][:150]
    cuts = sorted(data.draw(st.sets(st.integers(1, 149), max_size=8)))
    whole = run(decoders[1], short, [])
    # A key that lies between two integers may become either.
    assert np.abs(run(decoders[1], short, cuts) - whole).max() <= 0.03 * np.abs(whole).max()


def test_a_decoder_goes_on_from_rows_as_from_what_it_ran(
    packages: tuple[Package, Package], decoders: tuple[Decoder, Decoder], inputs: tuple[np.ndarray, np.ndarray]
) -> None:
    decoder, other = decoders[1], open_session(packages[1], "onnx", EngineSettings(threads=1)).decoder
    decoder.run(inputs[0][:90], inputs[1][:90], 0, 0)
    rows = decoder.read_caches(90)
    stored = {cache.storage for cache in packages[1].manifest.engines["onnx"].caches if cache.kind == "full"}
    assert stored == {"int8"} <= {str(each.dtype) for each in rows.rows}
    expected = decoder.run(inputs[0][90:100], inputs[1][90:100], 90, 10).copy()
    other.write_caches(rows)
    found = other.run(inputs[0][90:100], inputs[1][90:100], 90, 10)
    # Rows of sliding caches lie elsewhere, so that float32 sums may come in another order.
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()
    floats = decoders[0]
    with pytest.raises(ValueError, match="do not fit"):
        floats.write_caches(rows)


def test_full_layers_take_a_quarter_of_the_memory(packages: tuple[Package, Package]) -> None:
    floats, integers = (compute_memory_cost(package.manifest, "onnx") for package in packages)
    assert integers.cache_per_1000_positions * 4 == floats.cache_per_1000_positions
    length = packages[0].manifest.text.context_length
    saved = floats.cache_per_1000_positions * 3 * length / 4 / 1000
    assert floats.parts.caches - integers.parts.caches == pytest.approx(saved)


def test_a_manifest_says_how_caches_are_stored_and_only_where_they_are_not_floats(
    packages: tuple[Package, Package],
) -> None:
    floats, integers = (manifest_to_text(package.manifest) for package in packages)
    assert '"storage": "int8"' in integers
    assert "more_present_keys" not in floats
    assert manifest_from_text(integers, "integers") == packages[1].manifest
    with refused(cabochon.PackageError, "storage", "'int7'"):
        manifest_from_text(integers.replace('"storage": "int8"', '"storage": "int7"'), "integers")


def test_layers_of_a_package_with_integer_caches_can_be_looked_into(packages: tuple[Package, Package]) -> None:
    prompt = Prompt((2, *range(100, 135)), None)
    floats, integers = (read_layer_outputs(package, prompt).decoder for package in packages)
    for ours, theirs in zip(integers, floats, strict=True):
        assert np.linalg.norm(ours - theirs) < 0.05 * np.linalg.norm(theirs)


@given(st.integers(0, 9).map(lambda power: 2**power))
def test_the_mixing_matrix_keeps_lengths_and_spreads_every_channel(size: int) -> None:
    matrix = mixing_matrix(size)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-5)
    np.testing.assert_allclose(np.abs(matrix), size**-0.5, rtol=1e-6)
    # Neither a single channel nor all of them alike end up in one integer.
    if size >= 64:
        assert np.abs(np.ones(size) @ matrix).max() < 0.5 * size**0.5


@pytest.mark.parametrize("size", [0, 3, 48, 96])
def test_head_sizes_that_cannot_be_mixed_are_refused(size: int) -> None:
    with refused(CheckpointError, str(size), "power of two", "--kv-cache"):
        mixing_matrix(size)


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--target", "litert"), ("--kv-cache int8", "onnx")), (("--drafter", "some/drafter"), ("drafter", "float32"))],
)
def test_what_cannot_have_integer_caches_is_refused(
    options: tuple[str, ...], words: tuple[str, ...], tmp_path: Path
) -> None:
    assert_refused(run_command(CONVERT, TINY, tmp_path / "package", "--kv-cache", "int8", *options), *words)
    assert not (tmp_path / "package").exists()
