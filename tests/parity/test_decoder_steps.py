"""The decoder's cache: however a prompt is cut into runs, its logits are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_checkpoint import RandomWeights, small_config, write_random_checkpoint

import cabochon
from cabochon.backend import LONGEST_RUN, EngineSettings, Session
from cabochon.engines import open_session
from cabochon.errors import RequestError
from cabochon.package import Package, open_package
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.recipes import RECIPES

POSITIONS = 150


def random_inputs(package: Package, positions: int) -> tuple[np.ndarray, np.ndarray]:
    text = package.manifest.text
    generator = np.random.default_rng(7)
    embeddings = generator.standard_normal((positions, text.hidden_size), dtype=np.float32)
    width = text.layer_count * text.per_layer_input_size
    return embeddings, generator.standard_normal((positions, width), dtype=np.float32)


@pytest.fixture(scope="module", params=["two key-value heads", "one key-value head"])
def package(request: pytest.FixtureRequest, random_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Caches of one head are bound row by row, those of several as they are."""
    if request.param == "two key-value heads":
        return open_package(random_package)
    folder = tmp_path_factory.mktemp("one-head")
    checkpoint = write_random_checkpoint(folder / "checkpoint", small_config(num_key_value_heads=1), RandomWeights())
    return open_package(convert_checkpoint(checkpoint, folder / "package", ConversionSettings(RECIPES["float"])).folder)


@pytest.fixture(scope="module")
def session(package: Package) -> Session:
    return open_session(package, "onnx", EngineSettings())


@pytest.fixture(scope="module")
def inputs(package: Package) -> tuple[np.ndarray, np.ndarray]:
    return random_inputs(package, POSITIONS)


@pytest.fixture(scope="module")
def whole(session: Session, inputs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return session.decoder.run(*inputs, position=0, logits_to_keep=POSITIONS).copy()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_prompt_may_be_cut_anywhere(
    session: Session, inputs: tuple[np.ndarray, np.ndarray], whole: np.ndarray, data: st.DataObject
) -> None:
    position = 0
    while position < POSITIONS:
        count = data.draw(st.integers(1, POSITIONS - position), label="positions")
        kept = data.draw(st.integers(0, count), label="logits to keep")
        part = slice(position, position + count)
        logits = session.decoder.run(inputs[0][part], inputs[1][part], position, kept)
        expected = whole[position + count - kept : position + count]
        # float32 sums in another order, relative to the largest logit.
        assert logits.shape == expected.shape
        assert np.abs(logits - expected).max(initial=0) <= 2e-5 * np.abs(whole).max()
        position += count


@pytest.fixture(scope="module")
def long_package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """One whose context is several times what its sliding layers hold."""
    folder = tmp_path_factory.mktemp("long")
    config = small_config(max_position_embeddings=2048)
    checkpoint = write_random_checkpoint(folder / "checkpoint", config, RandomWeights())
    convert_checkpoint(checkpoint, folder / "package", ConversionSettings(RECIPES["float"], context_length=2048))
    return open_package(folder / "package")


LONG = 1700


@pytest.fixture(scope="module")
def long_inputs(long_package: Package) -> tuple[np.ndarray, np.ndarray]:
    return random_inputs(long_package, LONG)


@pytest.fixture(scope="module")
def all_at_once(long_package: Package, long_inputs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The graph run directly, with sliding caches that hold everything."""
    engine = long_package.manifest.engines["onnx"]
    assert {cache.window for cache in engine.caches} == {0, 24}
    feeds = {
        "inputs_embeds": long_inputs[0][None],
        "per_layer_inputs": long_inputs[1][None],
        "total_length": np.array(LONG, np.int32),
        "window_length": np.array(LONG, np.int32),
        "logits_to_keep": np.array([LONG]),
    }
    for cache in engine.caches:
        empty = np.zeros((1, cache.heads, LONG, cache.head_size), np.float32)
        feeds |= {cache.past_key: empty, cache.past_value: empty}
    graph = onnxruntime.InferenceSession(long_package.path(engine.decoder.file))
    logits: np.ndarray = graph.run(["logits"], feeds)[0][0]
    return logits


@pytest.mark.parametrize("longest", [3 * LONGEST_RUN // 4, LONGEST_RUN])
def test_sliding_layers_that_forget_give_the_logits_of_those_that_hold_everything(
    long_package: Package, long_inputs: tuple[np.ndarray, np.ndarray], all_at_once: np.ndarray, longest: int
) -> None:
    decoder = open_session(long_package, "onnx", EngineSettings()).decoder
    generator = np.random.default_rng(longest)
    position = 0
    while position < LONG:
        position -= int(generator.integers(min(40, position - decoder.earliest_position) + 1))
        count = min(int(generator.choice([1, 7, longest // 2, longest])), LONG - position)
        part = slice(position, position + count)
        logits = decoder.run(long_inputs[0][part], long_inputs[1][part], position, count)
        # float32 sums in another order, relative to the largest logit.
        assert np.abs(logits - all_at_once[part]).max() <= 2e-5 * np.abs(all_at_once).max()
        position += count
    assert decoder.earliest_position > 0


def test_going_back_behind_what_sliding_layers_hold_is_refused(
    long_package: Package, long_inputs: tuple[np.ndarray, np.ndarray]
) -> None:
    decoder = open_session(long_package, "onnx", EngineSettings()).decoder
    for start in range(0, LONG - LONGEST_RUN, LONGEST_RUN):
        part = slice(start, start + LONGEST_RUN)
        decoder.run(long_inputs[0][part], long_inputs[1][part], start)
    with pytest.raises(ValueError, match="go back to"):
        decoder.run(long_inputs[0][:1], long_inputs[1][:1], 1)


def test_a_run_longer_than_the_longest_is_refused(session: Session, inputs: tuple[np.ndarray, np.ndarray]) -> None:
    too_long = [np.repeat(part, 4, axis=0)[: LONGEST_RUN + 1] for part in inputs]
    with pytest.raises(ValueError, match="513"):
        session.decoder.run(too_long[0], too_long[1], 0)


def test_going_back_forgets_what_came_after(
    session: Session, inputs: tuple[np.ndarray, np.ndarray], whole: np.ndarray
) -> None:
    session.decoder.run(*inputs, position=0)
    logits = session.decoder.run(inputs[0][60:61], inputs[1][60:61], 60)
    assert np.abs(logits[0] - whole[60]).max() <= 2e-5 * np.abs(whole).max()


def test_the_cache_refuses_positions_beyond_its_end(session: Session, inputs: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        session.decoder.run(inputs[0][:2], inputs[1][:2], session.decoder.capacity - 1)


def test_a_context_longer_than_the_package_is_refused_in_one_sentence(random_package: Path) -> None:
    with pytest.raises(RequestError, match="converted for 512"):
        cabochon.load(random_package, context_length=513)
