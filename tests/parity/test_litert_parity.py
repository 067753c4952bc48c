"""T2: transformers, ONNX and LiteRT give the same logits and audio embeddings, and the same text, without rounding.

LiteRT adds up in another order than onnxruntime: 1e-5 of the largest value covers what differs, 1e-6 to 3e-6 is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY

import cabochon
from cabochon.backend import EngineSettings, Session
from cabochon.backend_litert import LitertDecoder
from cabochon.embedder import Embedder, open_embedder
from cabochon.engines import choose_engine, open_session
from cabochon.package import open_package
from cabochon.sampling import soft_cap
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.progress import Silence
from cabochon_convert.questions import Prompt
from cabochon_convert.recipes import RECIPES
from cabochon_convert.reference import ReferenceModel
from cabochon_convert.verify import verify_packages

TOLERANCE = 1e-5
CLIP_FRAMES = (9, 200, 1024, 1025, 2990)
"""Shorter than, equal to and longer than what the encoder's graphs are made for."""


class Opened:
    """A package below the level of text."""

    def __init__(self, folder: Path) -> None:
        self.package = open_package(folder)
        engine = choose_engine(self.package)
        self.session: Session = open_session(self.package, engine, EngineSettings())
        self.embedder: Embedder = open_embedder(self.package, engine)

    def logits(self, tokens: Sequence[int], runs: Sequence[int]) -> np.ndarray:
        """Soft-capped logits of all positions, run in parts of these lengths."""
        found, start = [], 0
        for count in runs:
            step = self.embedder.embed(tokens[start : start + count])
            raw = self.session.decoder.run(step.inputs_embeds, step.per_layer_inputs, start, logits_to_keep=count)
            found.append(soft_cap(raw.copy(), self.package.manifest.text.final_logit_softcap))
            start += count
        return np.concatenate(found)


@pytest.fixture(scope="module")
def litert(tiny_litert_float_package: Path) -> Opened:
    return Opened(tiny_litert_float_package)


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    folder = tmp_path_factory.mktemp("packages") / "tiny"
    return Opened(convert_checkpoint(TINY, folder, ConversionSettings(RECIPES["float"], context_length=1000)).folder)


@pytest.fixture(scope="module")
def reference() -> ReferenceModel:
    return ReferenceModel(TINY, Silence())


@pytest.fixture(scope="module")
def tokens(litert: Opened) -> list[int]:
    # Without control tokens: transformers looks placeholders of media up in a way of its own.
    size = litert.package.manifest.text.vocabulary_size
    return [2, *map(int, np.random.default_rng(0).integers(1000, size, 399))]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_logits_of_all_positions_are_those_of_transformers_and_onnx(
    litert: Opened, onnx: Opened, reference: ReferenceModel, tokens: list[int]
) -> None:
    ((_, expected),) = reference.logits([Prompt(tuple(tokens), None)], [len(tokens)])
    found = litert.logits(tokens, [len(tokens)])
    assert relative_error(found, expected) < TOLERANCE
    assert relative_error(found, onnx.logits(tokens, [len(tokens)])) < TOLERANCE


@pytest.mark.parametrize("runs", [(128, 272), (1, 5, 394), (300, 20, 79, 1), (127, 1, 129, 143)])
def test_a_prompt_may_be_run_in_any_parts(litert: Opened, tokens: list[int], runs: Sequence[int]) -> None:
    whole = litert.logits(tokens, [len(tokens)])[-1]
    start = 0
    for count in runs:
        step = litert.embedder.embed(tokens[start : start + count])
        last = litert.session.decoder.run(step.inputs_embeds, step.per_layer_inputs, start)[-1]
        start += count
    assert relative_error(last, whole) < TOLERANCE


def test_positions_that_are_run_again_forget_what_followed_them(litert: Opened, tokens: list[int]) -> None:
    expected = litert.logits(tokens[:150], [150])[-1].copy()
    litert.logits(tokens, [len(tokens)])
    step = litert.embedder.embed(tokens[100:150])
    again = litert.session.decoder.run(step.inputs_embeds, step.per_layer_inputs, 100)[-1]
    assert relative_error(again, expected) < TOLERANCE


@pytest.mark.parametrize("frames", CLIP_FRAMES)
def test_audio_embeddings_are_those_of_transformers_and_onnx_at_any_length(
    litert: Opened, onnx: Opened, reference: ReferenceModel, frames: int
) -> None:
    clip = np.random.default_rng(frames).standard_normal((frames, 128)).astype(np.float32)
    encoders = [opened.session.audio_encoder for opened in (litert, onnx)]
    assert encoders[0] is not None
    assert encoders[1] is not None
    found, others = (encoder.encode(clip) for encoder in encoders if encoder is not None)
    (expected,) = reference.audio_embeddings([clip])
    assert found.shape == expected.shape == others.shape
    assert relative_error(found, expected) < TOLERANCE
    assert relative_error(found, others) < TOLERANCE


def test_longer_caches_take_over_what_shorter_ones_hold(tiny_litert_package: Path) -> None:
    # Its caches hold 512, 1024 and 2048 positions.
    moved, straight = Opened(tiny_litert_package), Opened(tiny_litert_package)
    size = moved.package.manifest.text.vocabulary_size
    tokens = [2, *map(int, np.random.default_rng(1).integers(1000, size, 1099))]
    for start, count in ((0, 300), (300, 200), (500, 1), (501, 500), (1001, 99)):
        step = moved.embedder.embed(tokens[start : start + count])
        found = moved.session.decoder.run(step.inputs_embeds, step.per_layer_inputs, start)[-1]
    # Moving when the shorter ones are full, and going back from position 1030 in the longer ones.
    for start, count in ((0, 512), (512, 512), (1024, 76), (1030, 70)):
        step = straight.embedder.embed(tokens[start : start + count])
        expected = straight.session.decoder.run(step.inputs_embeds, step.per_layer_inputs, start)[-1]
    # Activations are rounded to 8 bits, so that sums in another order can tip them over.
    assert (found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected) > 0.999


def test_caches_that_have_grown_are_short_again_for_the_next_text(tiny_litert_package: Path) -> None:
    opened = Opened(tiny_litert_package)
    decoder = opened.session.decoder
    assert isinstance(decoder, LitertDecoder)
    size = opened.package.manifest.text.vocabulary_size
    tokens = [2, *map(int, np.random.default_rng(2).integers(1000, size, 1299))]
    expected, lengths = None, []
    for count in (100, 1300, 100, 600, 100):
        for start in range(0, count, 500):
            step = opened.embedder.embed(tokens[start : min(start + 500, count)])
            found = decoder.run(step.inputs_embeds, step.per_layer_inputs, start)[-1].copy()
        lengths.append(decoder._current.length)
        if count == 100:
            expected = found if expected is None else expected
            assert np.array_equal(found, expected)
    assert lengths == [512, 2048, 512, 1024, 512]
    assert [steps.length for steps in decoder._steps if steps._caches] == [512]


def test_both_engines_write_the_same_text(tiny_litert_float_package: Path, onnx: Opened) -> None:
    models = [cabochon.load(tiny_litert_float_package), cabochon.load(onnx.package.folder)]
    for sound in sorted((TINY / "demo").glob("*.wav")):
        texts = {model.translate(sound, source="English", target="German").finish() for model in models}
        assert len(texts) == 1


def test_a_package_for_litert_is_verified_like_any_other(tiny_litert_float_package: Path) -> None:
    (report,) = verify_packages([tiny_litert_float_package], TINY, Silence())
    assert (report.engine, report.passed) == ("litert", True)
    assert report.tolerance is not None
