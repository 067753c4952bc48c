from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import GOLDEN_MANIFEST, REPOSITORY
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from cabochon.backend import LONGEST_RUN
from cabochon.errors import RequestError
from cabochon.manifest import DrafterModel, Graph, Manifest
from cabochon.manifest_file import manifest_from_text
from cabochon.memory_cost import compute_memory_cost, weight_cache_bytes

GOLDEN = manifest_from_text(GOLDEN_MANIFEST.read_text(), "golden")
FLOAT = 4
SLIDING_ROW, FULL_ROW = 2 * 2 * 16 * FLOAT, 2 * 2 * 32 * FLOAT
"""Keys and values of one position in the golden manifest's two caches."""


def converted_for(context_length: int) -> Manifest:
    return replace(GOLDEN, text=replace(GOLDEN.text, context_length=context_length))


def on_litert(manifest: Manifest) -> Manifest:
    return replace(manifest, engines={"litert": manifest.engines["onnx"]})


def test_a_sliding_layer_costs_its_window_and_the_longest_run_and_a_full_one_the_context() -> None:
    cost = compute_memory_cost(converted_for(32768), "onnx")
    assert cost.parts.caches == (512 + LONGEST_RUN) * SLIDING_ROW + 32768 * FULL_ROW
    assert cost.cache_per_1000_positions == 1000 * FULL_ROW


def test_1000_positions_more_cost_what_is_said() -> None:
    manifest = converted_for(32768)
    shorter, longer = (compute_memory_cost(manifest, "onnx", length) for length in (4000, 5000))
    assert longer.parts.caches - shorter.parts.caches == shorter.cache_per_1000_positions
    # Prompts are embedded a run at a time, so that longer ones cost no more.
    assert longer.text - shorter.text == shorter.cache_per_1000_positions
    assert longer.parts.prompt == LONGEST_RUN * FLOAT * (64 + 7 * 32)


def test_litert_costs_caches_of_the_length_that_is_needed_and_while_they_grow_the_last_ones_too() -> None:
    # A run of 128 positions reads 640 rows of a layer with a window of 512.
    manifest = on_litert(converted_for(4096))
    each = [compute_memory_cost(manifest, "litert", length).parts.caches for length in (640, 641, 1280, 4096)]
    row = SLIDING_ROW + FULL_ROW
    wanted = (1.7 * 640, 1.7 * 1280 + 640, 1.7 * 1280 + 640, 1.7 * 4096 + 2560)
    assert each == [pytest.approx(row * rows, rel=1e-6) for rows in wanted]


def test_what_litert_maps_is_not_in_memory_twice_and_is_written_to_the_cache_folder() -> None:
    cost = compute_memory_cost(on_litert(GOLDEN), "litert")
    assert cost.mapped < cost.parts.decoder_weights + cost.parts.audio_weights + cost.parts.vision_weights
    assert cost.loading < cost.parts.runtime + cost.parts.decoder_weights
    assert weight_cache_bytes(on_litert(GOLDEN), "litert") == cost.mapped
    assert weight_cache_bytes(GOLDEN, "onnx") == 0


def test_a_package_without_encoders_costs_nothing_for_sounds_and_images() -> None:
    engine = replace(GOLDEN.engines["onnx"], audio_encoder=None, vision_encoder=None)
    cost = compute_memory_cost(replace(GOLDEN, engines={"onnx": engine}, audio=None, vision=None), "onnx")
    assert cost.sound is None
    assert cost.image is None
    assert cost.everything == cost.text


@pytest.mark.parametrize("engine", ["onnx", "litert"])
@given(lengths=st.lists(st.integers(1, 131072), min_size=2, max_size=2).map(sorted))
def test_a_longer_context_never_costs_less(engine: str, lengths: list[int]) -> None:
    manifest = converted_for(131072) if engine == "onnx" else on_litert(converted_for(131072))
    shorter, longer = (compute_memory_cost(manifest, engine, length) for length in lengths)
    assert shorter.text <= longer.text
    for cost in (shorter, longer):
        assert cost.sound is not None
        assert cost.image is not None
        assert cost.text <= min(cost.sound, cost.image) <= max(cost.sound, cost.image) <= cost.everything


def test_a_drafter_costs_its_weights_its_guesses_and_copies_of_what_it_reads() -> None:
    engine, record = GOLDEN.engines["onnx"], replace(GOLDEN.files[0], path="drafter.onnx", size=10**6)
    data = replace(record, path="drafter.onnx.data", size=10**7)
    layers = {cache.kind: cache.layer for cache in engine.caches}
    graph = Graph(file="drafter.onnx", inputs=(), outputs=())
    drafter = DrafterModel(graph=graph, cache_layers=layers, recommended_drafts=3, source=GOLDEN.source)
    drafting = replace(GOLDEN, engines={"onnx": replace(engine, drafter=drafter)}, files=(*GOLDEN.files, record, data))
    plain, cost = (compute_memory_cost(manifest, "onnx") for manifest in (GOLDEN, drafting))
    assert cost.parts.drafter_weights == pytest.approx(1.11 * 1.1e7)
    assert plain.parts.drafter_weights == plain.parts.drafter_activations == 0
    rows = 5 * GOLDEN.text.vocabulary_size * FLOAT + 512 * (SLIDING_ROW + FULL_ROW)
    assert cost.parts.drafter_activations == rows
    assert cost.text - plain.text == cost.parts.drafter_weights + cost.parts.drafter_activations
    assert cost.everything - plain.everything == cost.text - plain.text
    assert cost.loading > plain.loading
    litert = compute_memory_cost(on_litert(drafting), "litert")
    assert litert.mapped == compute_memory_cost(on_litert(GOLDEN), "litert").mapped + 11 * 10**6
    assert weight_cache_bytes(on_litert(drafting), "litert") == litert.mapped


def test_a_context_that_the_package_has_not_is_refused() -> None:
    with refused(RequestError, "513", "--context-length"):
        compute_memory_cost(GOLDEN, "onnx", 513)


def assert_near_measured(package: Path) -> None:
    """Within a quarter: of a package of a few megabytes, most is Python, libraries and their allocators."""
    command = [sys.executable, REPOSITORY / "benchmarks" / "memory.py", package, "--context-length", "1500", "--json"]
    outcome = subprocess.run(command, check=True, capture_output=True, text=True)
    stages = json.loads(outcome.stdout)[str(package)]
    assert {"loading", "text", "sound"} <= set(stages)
    for stage, (measured, computed) in stages.items():
        assert 0.75 < computed / measured < 1.33, (stage, measured, computed)


def test_what_a_package_takes_on_onnxruntime_is_what_was_computed(tiny_onnx_package: Path) -> None:
    assert_near_measured(tiny_onnx_package)


def test_what_a_package_takes_on_litert_is_what_was_computed(tiny_litert_package: Path) -> None:
    assert_near_measured(tiny_litert_package)
