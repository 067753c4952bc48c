"""What a decoder remembers can be taken out and put back, into it or another one, and it goes on as if nothing was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from cabochon.backend import LONGEST_RUN, CacheRows, Decoder, EngineSettings
from cabochon.decode import run_prompt
from cabochon.embedder import PromptEmbeddings
from cabochon.engines import open_session
from cabochon.package import Package, open_package
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.recipes import RECIPES

LONGEST, BEHIND = 900, 12
"""Positions: more than sliding layers of models/tiny hold, and those that are run after them."""


@pytest.fixture(scope="module")
def tiny_onnx(tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("package") / "tiny"
    converted = convert_checkpoint(TINY, folder, ConversionSettings(RECIPES["float"], context_length=1000))
    return open_package(converted.folder)


@pytest.fixture(scope="module", params=["onnx", "litert"])
def decoders(request: pytest.FixtureRequest, tiny_onnx: Package, tiny_litert_float_package: Path) -> list[Decoder]:
    """Two on the same engine."""
    package = tiny_onnx if request.param == "onnx" else open_package(tiny_litert_float_package)
    return [open_session(package, request.param, EngineSettings(threads=2)).decoder for _ in range(2)]


@pytest.fixture(scope="module")
def prompt(tiny_onnx: Package) -> PromptEmbeddings:
    text, generator = tiny_onnx.manifest.text, np.random.default_rng(3)
    width = text.layer_count * text.per_layer_input_size
    count = LONGEST + BEHIND
    return PromptEmbeddings(
        generator.standard_normal((count, text.hidden_size), dtype=np.float32),
        generator.standard_normal((count, width), dtype=np.float32),
    )


def run(decoder: Decoder, prompt: PromptEmbeddings, start: int, end: int, logits_to_keep: int = 1) -> np.ndarray:
    part = PromptEmbeddings(prompt.inputs_embeds[start:end], prompt.per_layer_inputs[start:end])
    return run_prompt(decoder, part, start, logits_to_keep).copy()


@settings(max_examples=12, deadline=None)
@given(end=st.one_of(st.integers(1, 140), st.integers(1, LONGEST)), other=st.integers(1, LONGEST))
def test_a_decoder_goes_on_from_rows_as_from_what_it_ran(
    decoders: list[Decoder], prompt: PromptEmbeddings, end: int, other: int
) -> None:
    run(decoders[0], prompt, 0, end)
    rows = decoders[0].read_caches(end)
    expected = run(decoders[0], prompt, end, end + BEHIND, BEHIND)
    backwards = PromptEmbeddings(prompt.inputs_embeds[::-1], prompt.per_layer_inputs[::-1])
    for decoder in decoders:
        run(decoder, backwards, 0, other)
        decoder.write_caches(rows)
        assert decoder.earliest_position <= end
        assert np.array_equal(run(decoder, prompt, end, end + BEHIND, BEHIND), expected)
    # What was read is a copy.
    again = decoders[1]
    again.write_caches(rows)
    assert all(np.array_equal(one, two) for one, two in zip(again.read_caches(end).rows, rows.rows, strict=True))


def test_rows_that_do_not_fit_are_refused(decoders: list[Decoder], prompt: PromptEmbeddings) -> None:
    decoder = decoders[0]
    run(decoder, prompt, 0, 20)
    rows = decoder.read_caches(20)
    expected = run(decoder, prompt, 20, 21)
    for damaged in (
        replace(rows, end=0),
        replace(rows, end=19),
        replace(rows, end=1001),
        replace(rows, rows=rows.rows[:-1]),
        replace(rows, rows=(*rows.rows[:-1], rows.rows[-1][:, :, :-1])),
        replace(rows, rows=tuple(each.astype(np.float64) for each in rows.rows)),
        CacheRows(20, ()),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            decoder.write_caches(damaged)
    # And nothing was touched.
    assert np.array_equal(run(decoder, prompt, 20, 21), expected)


def test_rows_that_were_forgotten_cannot_be_read(tiny_onnx: Package, prompt: PromptEmbeddings) -> None:
    decoder = open_session(tiny_onnx, "onnx", EngineSettings(threads=2)).decoder
    run(decoder, prompt, 0, LONGEST)
    assert decoder.earliest_position > 0
    with pytest.raises(ValueError, match="position 1 is not"):
        decoder.read_caches(1)
    assert decoder.read_caches(LONGEST).end == LONGEST > LONGEST_RUN
