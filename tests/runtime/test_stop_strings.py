from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from cabochon.errors import RequestError
from cabochon.generation import Generation
from cabochon.stop_strings import StopStrings

TEXTS = st.text("ab\n", max_size=30)


@given(st.lists(TEXTS, max_size=8), st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=3))
def test_an_answer_ends_before_the_first_stop_string_wherever_it_was_cut(pieces: list[str], strings: list[str]) -> None:
    stops, found = StopStrings(strings), []
    for piece in pieces:
        found.append(stops.push(piece))
    text = "".join(pieces)
    # A piece ends as soon as it holds a stop string, so that a longer one that begins before may be cut off by it.
    ends = [min((text[:end].find(each) for each in strings if each in text[:end]), default=None)
            for end in range(len(text) + 1)]  # fmt: skip
    places = [place for place in ends if place is not None]
    assert stops.found == bool(places)
    if places:
        assert "".join(found) == text[: len("".join(found))]
        assert not any(each in "".join(found) for each in strings)
        assert any(text.startswith(each, len("".join(found))) for each in strings)
    else:
        assert "".join(found) + stops.finish() == text


def test_what_may_become_a_stop_string_waits() -> None:
    stops = StopStrings(["\n\n", "END"])
    assert stops.push("one\n") == "one"
    assert stops.push("two E") == "\ntwo "
    assert stops.push("NOUGH") == "ENOUGH"
    assert stops.push("EN") == ""
    assert stops.finish() == "EN"
    assert stops.push("D") == "D"
    assert stops.push("END more") == ""
    assert stops.found
    assert stops.push("x") == ""


@pytest.mark.parametrize("strings", [("",), ("a", ""), "abc", (1,)])
def test_what_is_no_stop_string_is_refused(strings: tuple[str, ...]) -> None:
    with refused(RequestError, "stop strings"):
        Generation(stop=strings)


@pytest.mark.parametrize("wish", [{"max_tokens": 0}, {"max_tokens": 1.5}, {"thinking": 0}, {"thinking": -3}])
def test_impossible_wishes_are_refused(wish: dict[str, int]) -> None:
    with refused(RequestError, "expected"):
        Generation(**wish)
