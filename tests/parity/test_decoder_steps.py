"""The decoder's cache: however a prompt is cut into runs, its logits are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cabochon
from cabochon.backend import EngineSettings, Session
from cabochon.engines import open_session
from cabochon.errors import RequestError
from cabochon.package import open_package

POSITIONS = 150


@pytest.fixture(scope="module")
def session(random_package: Path) -> Session:
    return open_session(open_package(random_package), "onnx", EngineSettings(threads=2))


@pytest.fixture(scope="module")
def inputs(random_package: Path) -> tuple[np.ndarray, np.ndarray]:
    text = open_package(random_package).manifest.text
    generator = np.random.default_rng(7)
    embeddings = generator.standard_normal((POSITIONS, text.hidden_size), dtype=np.float32)
    width = text.layer_count * text.per_layer_input_size
    return embeddings, generator.standard_normal((POSITIONS, width), dtype=np.float32)


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
        kept = data.draw(st.integers(1, count), label="logits to keep")
        part = slice(position, position + count)
        logits = session.decoder.run(inputs[0][part], inputs[1][part], position, kept)
        expected = whole[position + count - kept : position + count]
        # float32 sums in another order, relative to the largest logit.
        assert np.abs(logits - expected).max() <= 2e-5 * np.abs(whole).max()
        position += count


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
