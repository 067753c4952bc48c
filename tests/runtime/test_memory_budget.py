from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import GOLDEN_MANIFEST
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

import cabochon
from cabochon.errors import RequestError
from cabochon.machine import Memory, MemoryLimit
from cabochon.manifest_file import read_manifest
from cabochon.memory_budget import TOLERANCE, refuse_unless_it_fits, require_memory
from cabochon.memory_cost import MemoryCost, compute_memory_cost

COST = compute_memory_cost(read_manifest(GOLDEN_MANIFEST.parent), "onnx")
NEEDED = COST.text - COST.mapped_for_text


def test_what_cannot_fit_is_refused_with_the_arithmetic() -> None:
    with refused(RequestError, "interpreter", "caches of", "--context-length", "0.01 GB of memory"):
        refuse_unless_it_fits(COST, Memory(10**9, 10**7, 0, 0), None)


def test_a_limit_counts_like_memory_and_without_swap() -> None:
    memory = Memory(10**12, 10**12, 10**12, 10**12)
    refuse_unless_it_fits(COST, memory, None)
    with refused(RequestError, "0.00 GB of swap"):
        refuse_unless_it_fits(COST, memory, MemoryLimit(10**7, None))


def test_weights_of_encoders_that_are_mapped_do_not_make_room_for_text() -> None:
    """LiteRT maps weights; text alone needs all of the rest, whatever the encoders would take."""
    parts = replace(COST.parts, decoder_weights=10**9, audio_weights=3 * 10**8, vision_weights=2 * 10**8)
    mapped = replace(COST, parts=parts, mapped=10**9 + 5 * 10**8, loading=0)
    rest = mapped.text - 10**9
    refuse_unless_it_fits(mapped, Memory(10**12, rest, 0, 0), None)
    with refused(RequestError, "memory"):
        refuse_unless_it_fits(mapped, Memory(10**12, round(rest * TOLERANCE) - 2, 0, 0), None)


def test_swap_counts_where_there_is_no_limit() -> None:
    refuse_unless_it_fits(COST, Memory(10**9, 10**7, 10**12, 10**12), None)


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_it_is_refused_only_where_it_surely_does_not_fit(available: int, swap: int) -> None:
    try:
        refuse_unless_it_fits(COST, Memory(1 << 41, available, 1 << 41, swap), None)
    except RequestError:
        assert available + swap < NEEDED * TOLERANCE
    else:
        assert available + swap >= NEEDED * TOLERANCE


def test_a_machine_that_says_nothing_may_try() -> None:
    refuse_unless_it_fits(COST, Memory(), None)


def test_loading_is_refused_before_weights_are_read(random_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cabochon.memory_budget.find_memory", lambda: Memory(10**9, 10**6, 0, 0))
    with refused(RequestError, "CABOCHON_LOAD_ANYWAY"):
        cabochon.load(random_package)
    monkeypatch.setenv("CABOCHON_LOAD_ANYWAY", "1")
    assert cabochon.load(random_package).context_length > 0


def test_an_engine_that_is_unknown_is_not_judged() -> None:
    manifest = read_manifest(GOLDEN_MANIFEST.parent)
    require_memory(manifest, "steam", 0)


def test_the_golden_package_costs_something() -> None:
    assert isinstance(COST, MemoryCost)
    assert NEEDED > 10**7
