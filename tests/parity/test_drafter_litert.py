"""A drafter's LiteRT graph says what transformers' assistant says, whatever the caches hold.

The decoder is left out: keys, values and hidden states are random. With a decoder: `test_drafter_parity.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from litert_graphs import RUNNERS, run_compiled
from random_checkpoint import small_config
from random_drafter import drafter_config, random_drafter, write_drafter

from cabochon_convert.config import read_config
from cabochon_convert.drafter_litert import build_litert_drafter
from cabochon_convert.drafter_source import DrafterSource, open_drafter
from cabochon_convert.matrices import LinearSettings
from cabochon_convert.recipes import RECIPES

TOLERANCE = 1e-5
"""float32 sums in another order, relative to the largest value; 1e-6 to 3e-6 is found."""
WINDOW, HIDDEN = 24, 64
LENGTHS = (16, 40, 200)
"""Of caches: shorter than the window, and longer."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a drafter is given: each kind's keys and values [1, heads, rows, head size], and states [1, 1, hidden]."""

    caches: dict[str, tuple[np.ndarray, np.ndarray]]
    embedding: np.ndarray
    hidden: np.ndarray
    position: int

    def to_graph(self) -> dict[str, np.ndarray]:
        caches = {f"keys_{kind}": keys for kind, (keys, _) in self.caches.items()}
        caches |= {f"values_{kind}": values.swapaxes(2, 3).copy() for kind, (_, values) in self.caches.items()}
        states = {"embedding": self.embedding, "hidden": self.hidden}
        return {**caches, **states, "position": np.array([self.position], np.int32)}

    def to_assistant(self) -> dict[str, Any]:
        first = {"full": 0, "sliding": max(0, self.position - WINDOW)}
        shared = {
            f"{kind}_attention": tuple(torch.from_numpy(part[:, :, first[kind] : self.position]) for part in pair)
            for kind, pair in self.caches.items()
        }
        states = torch.from_numpy(np.concatenate([self.embedding, self.hidden], axis=2))
        return {
            "inputs_embeds": states, "shared_kv_states": shared, "position_ids": torch.tensor([[self.position]]),
        }  # fmt: skip


def draw(source: DrafterSource, length: int, position: int) -> Given:
    generator = np.random.default_rng([length, position])

    def numbers(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    layers = {layer.kind: layer for layer in source.config.text.layers}
    caches = {}
    for kind, layer in layers.items():
        shape = (1, layer.kv_heads, length, layer.head_size)
        caches[kind] = numbers(*shape), numbers(*shape)
    return Given(caches, numbers(1, 1, HIDDEN), numbers(1, 1, HIDDEN), position)


@dataclass(frozen=True, slots=True)
class Pair:
    """The same drafter, ours and theirs."""

    path: Path
    source: DrafterSource
    assistant: Any


def build(folder: Path, own: dict[str, Any], target: dict[str, Any], recipe: str = "float") -> Pair:
    assistant = random_drafter(own)
    source = open_drafter(write_drafter(folder / "drafter", own, assistant), read_config(target).text)
    path = folder / "drafter.tflite"
    build_litert_drafter(source.checkpoint, source.config, LinearSettings(RECIPES[recipe]), LENGTHS, path)
    return Pair(path, source, assistant)


@pytest.fixture(scope="module", params=["clusters", "several heads, no clusters", "one head"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    target = small_config(num_key_value_heads=1 if request.param == "one head" else 2)
    own = drafter_config(target, clusters=0 if "no clusters" in request.param else 48)
    return build(tmp_path_factory.mktemp("drafter"), own, target)


def all_logits(found: dict[str, np.ndarray]) -> np.ndarray:
    """Those of no candidates are not a number: [vocabulary]."""
    logits = np.full(3072, np.nan, np.float32)
    logits[found.get("candidates", slice(None))] = found["logits"][0, 0]
    return logits


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.parametrize(
    ("length", "position"),
    [(16, 1), (16, 16), (40, 23), (40, 24), (40, 25), (40, 40), (200, 7), (200, 133), (200, 200)],
)
@torch.no_grad()
def test_guesses_are_those_of_the_reference(
    pair: Pair, run: Callable[..., dict[str, np.ndarray]], length: int, position: int
) -> None:
    given = draw(pair.source, length, position)
    found = run(pair.path, f"draft_cache_{length}", **given.to_graph())
    expected = pair.assistant(**given.to_assistant())
    hidden = expected.last_hidden_state.numpy()
    assert np.abs(found["next_hidden"] - hidden).max() <= TOLERANCE * np.abs(hidden).max()
    logits, wanted = all_logits(found), expected.logits[0, 0].numpy()
    seen = ~np.isnan(logits)
    assert seen.sum() == (6 * 64 if pair.assistant.config.use_ordered_embeddings else 3072)
    assert np.abs(logits[seen] - wanted[seen]).max() <= TOLERANCE * np.abs(wanted[seen]).max()
    # What is no candidate, the reference puts below all candidates.
    assert seen.all() or wanted[~seen].max() < wanted[seen].min()


def test_rows_that_are_not_seen_have_no_say(pair: Pair) -> None:
    given = draw(pair.source, 200, 100)
    expected = run_compiled(pair.path, "draft_cache_200", **given.to_graph())
    for kind, caches in given.caches.items():
        for cache in caches:
            cache[:, :, 100:] = 30
            cache[:, :, : 100 - WINDOW if kind == "sliding" else 0] = 30
    found = run_compiled(pair.path, "draft_cache_200", **given.to_graph())
    for name in found:
        assert np.array_equal(found[name], expected[name])


@pytest.mark.parametrize("clusters", [48, 0])
def test_a_rounded_drafter_guesses_nearly_the_same(tmp_path: Path, clusters: int) -> None:
    target = small_config()
    # All clusters, so that the same candidates can be compared.
    own = drafter_config(target, clusters=clusters, chosen=48)
    found, sizes = {}, {}
    for recipe in ("float", "int8", "int4", "int4-mixed"):
        pair = build(tmp_path / recipe, own, target, recipe)
        given = draw(pair.source, 40, 30).to_graph()
        found[recipe] = all_logits(run_compiled(pair.path, "draft_cache_40", **given))
        sizes[recipe] = pair.path.stat().st_size
    for recipe, cosine in (("int8", 0.99), ("int4", 0.8), ("int4-mixed", 0.8)):
        product = found[recipe] @ found["float"]
        assert product / np.linalg.norm(found[recipe]) / np.linalg.norm(found["float"]) >= cosine
        assert sizes[recipe] < sizes["float"]


def test_matrices_are_stored_once_for_caches_of_all_lengths(pair: Pair, tmp_path: Path) -> None:
    sizes = []
    for lengths in ((200,), LENGTHS):
        path = tmp_path / f"{len(lengths)}.tflite"
        settings = LinearSettings(RECIPES["float"])
        build_litert_drafter(pair.source.checkpoint, pair.source.config, settings, lengths, path)
        sizes.append(path.stat().st_size)
    assert sizes[1] < 1.25 * sizes[0]
