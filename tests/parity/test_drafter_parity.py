"""A converted drafter says what transformers' assistant says, from the caches and hidden states of the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from random_checkpoint import RandomWeights, small_config, write_random_checkpoint
from random_drafter import drafter_config, random_drafter, write_drafter

from cabochon.backend import Drafter, EngineSettings, Session
from cabochon.decode import prefill
from cabochon.embedder import Embedder, open_embedder
from cabochon.engines import choose_engine, open_session
from cabochon.package import open_package
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.recipes import RECIPES

WINDOW = 24
TOLERANCE = 2e-5
"""float32 sums in another order, relative to the largest value."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The same model and drafter, ours and theirs."""

    package: Path
    target: Any
    assistant: Any


@pytest.fixture(scope="module", params=["clusters", "several heads, no clusters", "one head", "litert"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    if request.param == "litert":
        package, checkpoint = map(request.getfixturevalue, ("drafting_litert_package", "random_checkpoint"))
        return Pair(package, read_target(checkpoint), random_drafter(drafter_config(small_config())))
    folder = tmp_path_factory.mktemp("drafters")
    config = small_config(num_key_value_heads=1 if request.param == "one head" else 2)
    checkpoint = write_random_checkpoint(folder / "checkpoint", config, RandomWeights())
    own = drafter_config(config, clusters=0 if "no clusters" in request.param else 48)
    assistant = random_drafter(own)
    drafter = write_drafter(folder / "drafter", own, assistant)
    convert_checkpoint(checkpoint, folder / "package", ConversionSettings(RECIPES["float"], drafter=drafter))
    return Pair(folder / "package", read_target(checkpoint), assistant)


def read_target(checkpoint: Path) -> Any:
    return transformers.Gemma4ForConditionalGeneration.from_pretrained(str(checkpoint), dtype=torch.float32).eval()


def open_graphs(folder: Path) -> tuple[Session, Embedder]:
    package = open_package(folder)
    engine = choose_engine(package)
    return open_session(package, engine, EngineSettings()), open_embedder(package, engine)


def run_ours(package: Path, tokens: list[int], token: int, guesses: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Logits of all tokens (those of no candidates are not a number) and hidden states, guess by guess."""
    session, embedder = open_graphs(package)
    drafter = session.drafter
    assert drafter is not None
    prefill(session.decoder, embedder.embed(tokens))
    return guess_on(drafter, embedder, drafter.hidden_states[-1], len(tokens), token, guesses)


def guess_on(
    drafter: Drafter, embedder: Embedder, hidden: np.ndarray, position: int, token: int, guesses: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    found = []
    drafter.start(position)
    for _ in range(guesses):
        guess = drafter.guess(embedder.tokens.look_up([token])[0], hidden)
        logits = np.full(3072, np.nan, np.float32)
        logits[slice(None) if guess.candidates is None else guess.candidates] = guess.logits
        found.append((logits, guess.hidden))
        token, hidden = int(np.nanargmax(logits)), guess.hidden
    return found


@torch.no_grad()
def run_theirs(pair: Pair, tokens: list[int], token: int, guesses: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """As transformers' candidate generator does, but that sliding layers see a window and not one position more, which
    a decoder that holds windows only could not give."""
    outputs = pair.target(
        input_ids=torch.tensor([tokens]), output_hidden_states=True, return_shared_kv_states=True, use_cache=False
    )
    hidden = outputs.hidden_states[-1][:, -1:]
    shared = {
        kind: tuple(
            part[:, :, -WINDOW if kind == "sliding_attention" else 0 :] for part in outputs.shared_kv_states[kind]
        )
        for kind in ("sliding_attention", "full_attention")
    }
    position = torch.tensor([[len(tokens)]])
    found = []
    for _ in range(guesses):
        embedding = pair.target.get_input_embeddings()(torch.tensor([[token]]))
        guess = pair.assistant(
            inputs_embeds=torch.cat([embedding, hidden], dim=-1), position_ids=position, shared_kv_states=shared
        )
        found.append((guess.logits[0, 0].numpy(), guess.last_hidden_state[0, 0].numpy()))
        token, hidden = int(guess.logits.argmax()), guess.last_hidden_state
    return found


@pytest.mark.parametrize("length", [5, WINDOW, WINDOW + 1, 90])
def test_guesses_are_those_of_the_reference(pair: Pair, length: int) -> None:
    tokens = np.random.default_rng(length).integers(300, 3000, length + 1).tolist()
    ours = run_ours(pair.package, tokens[:-1], tokens[-1], guesses=3)
    theirs = run_theirs(pair, tokens[:-1], tokens[-1], guesses=3)
    for (logits, hidden), (expected, expected_hidden) in zip(ours, theirs, strict=True):
        seen = ~np.isnan(logits)
        assert seen.sum() == (6 * 64 if pair.assistant.config.use_ordered_embeddings else 3072)
        scale = np.abs(expected[seen]).max()
        assert np.abs(logits[seen] - expected[seen]).max() <= TOLERANCE * scale
        assert np.abs(hidden - expected_hidden).max() <= TOLERANCE * np.abs(expected_hidden).max()
        # What is no candidate, the reference puts below all candidates.
        assert seen.all() or expected[~seen].max() < expected[seen].min()


def test_a_guess_does_not_depend_on_what_was_rejected_before(pair: Pair) -> None:
    tokens = np.random.default_rng(1).integers(300, 3000, 80).tolist()
    session, embedder = open_graphs(pair.package)
    drafter = session.drafter
    assert drafter is not None
    prefill(session.decoder, embedder.embed(tokens[:70]))
    # Of these, the last ones are rejected.
    run = embedder.embed([*tokens[70:76], 5, 6, 7])
    session.decoder.run(run.inputs_embeds, run.per_layer_inputs, 70, 9)
    ((logits, _),) = guess_on(drafter, embedder, drafter.hidden_states[5], 76, tokens[76], 1)
    ((expected, _),) = run_ours(pair.package, tokens[:76], tokens[76], 1)
    assert np.nanmax(np.abs(logits - expected)) <= TOLERANCE * np.nanmax(np.abs(expected))


def test_a_rounded_drafter_guesses_nearly_the_same(tmp_path: Path) -> None:
    config = small_config()
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", config, RandomWeights())
    own = drafter_config(config, chosen=48)  # all clusters, so that the same candidates can be compared
    drafter = write_drafter(tmp_path / "drafter", own, random_drafter(own))
    found = {}
    for name in ("float", "int8", "int4", "int4-calibrated"):
        recipe = RECIPES[name]
        if recipe.is_calibrated:
            continue
        convert_checkpoint(checkpoint, tmp_path / name, ConversionSettings(recipe, drafter=drafter))
        ((found[name], _),) = run_ours(tmp_path / name, list(range(300, 340)), 340, 1)
    for name, cosine in (("int8", 0.99), ("int4", 0.8)):
        product = found[name] @ found["float"]
        assert product / np.linalg.norm(found[name]) / np.linalg.norm(found["float"]) >= cosine
