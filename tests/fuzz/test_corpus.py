"""Everything in the corpus, and what hypothesis makes of it, is read or refused in one sentence."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import convert_tiny
from fuzz.parsers import FILE_PARSERS, Parse
from fuzz.run import CORPUS, LONGEST_SECONDS
from fuzz.servers import SERVER_PARSERS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cabochon
from cabochon.errors import CabochonError

PARSERS = [*FILE_PARSERS, *SERVER_PARSERS]
NUMBERS = [b"0", b"-1", b"1e999", b"4294967295", b"9223372036854775808", b"99999999999999999999", b"null", b"true"]
ENDS = [
    b"",
    b"\x00",
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"{",
    b"}",
    b"[" * 50,
    b"\n",
    b'"',
    b"\\u0000",
]


@pytest.fixture(scope="module")
def make_parse(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Parse]:
    """A parser by its name, each made once."""
    made: dict[str, Parse] = {}

    def make(name: str) -> Parse:
        if name not in made and name in FILE_PARSERS:
            made[name] = FILE_PARSERS[name](tmp_path_factory.mktemp(name))
        elif name not in made:
            made[name] = SERVER_PARSERS[name](cabochon.load(convert_tiny("int4-mixed", tmp_path_factory)))
        return made[name]

    return make


def inputs_of(parser: str) -> list[Path]:
    return sorted((CORPUS / parser).iterdir())


def read_or_refuse(parse: Parse, data: bytes) -> None:
    began = time.thread_time()
    try:
        parse(data)
    except CabochonError as error:
        sentence = str(error)
        assert sentence.rstrip().endswith((".", ")")), sentence
    assert time.thread_time() - began < LONGEST_SECONDS


@pytest.mark.parametrize(("parser", "name"), [(parser, path.name) for parser in PARSERS for path in inputs_of(parser)])
def test_every_input_of_the_corpus_is_read_or_refused(
    parser: str, name: str, make_parse: Callable[[str], Parse]
) -> None:
    read_or_refuse(make_parse(parser), (CORPUS / parser / name).read_bytes())


@st.composite
def changed(draw: st.DrawFn, inputs: list[bytes]) -> bytes:
    """One of some inputs, with a few places changed."""
    data = draw(st.sampled_from(inputs))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["cut", "flip", "put", "drop", "number", "splice"])):
            case "cut":
                data = data[:at]
            case "flip":
                data = (
                    data[:at] + bytes(each ^ draw(st.integers(1, 255)) for each in data[at : at + 1]) + data[at + 1 :]
                )
            case "put":
                data = data[:at] + draw(st.sampled_from(ENDS) | st.binary(max_size=8)) + data[at:]
            case "drop":
                data = data[:at] + data[at + draw(st.integers(1, 40)) :]
            case "number":
                data = data[:at] + draw(st.sampled_from(NUMBERS)) + data[at + draw(st.integers(0, 6)) :]
            case "splice":
                data = data[:at] + draw(st.sampled_from(inputs))[draw(st.integers(0, 200)) :]
    return data


@pytest.mark.parametrize("parser", PARSERS)
def test_inputs_like_those_of_the_corpus_are_read_or_refused(parser: str, make_parse: Callable[[str], Parse]) -> None:
    parse = make_parse(parser)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(changed([path.read_bytes() for path in inputs_of(parser)]))
    def read_changed(data: bytes) -> None:
        read_or_refuse(parse, data)

    read_changed()
