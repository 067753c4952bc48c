"""T2: prompts with images, videos and sounds give transformers' logits and greedy answers, on both engines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from random_checkpoint import RandomWeights, small_config, write_random_checkpoint
from seeing_reference import SeeingReference, Turn, let_template_show_videos

import cabochon
from cabochon.arrays import Float32Array
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.recipes import RECIPES

BUDGET, FRAME_BUDGET = 140, 70
TOLERANCE = 2e-5
"""Of the largest logit: float32 sums in another order."""
NEW_TOKENS = 12


def noise(rows: int, columns: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


PHOTOGRAPH, STRIP, ICON = noise(120, 160, 0), noise(9, 300, 1), noise(20, 16, 2)
FILM = tuple(noise(48, 64, seed) for seed in range(3, 7))
SOUND = (0.3 * np.sin(np.arange(16_000) * 0.13)).astype(np.float32)
CONVERSATIONS = {
    "one image": [Turn("What is this?", (PHOTOGRAPH,))],
    "several images": [Turn("Which one is larger?", (PHOTOGRAPH, STRIP, ICON))],
    "images in two turns": [
        Turn("What is this?", (ICON,)),
        Turn("An icon.", role="assistant"),
        Turn("And these?", (STRIP, PHOTOGRAPH)),
    ],
    "a video": [Turn("What happens?", videos=(FILM,))],
    "images and videos": [Turn("When is this seen?", (ICON,), (FILM[:2], FILM[2:])), Turn("Look.", (STRIP,))],
    "an image and a sound": [Turn("Answer.", (PHOTOGRAPH,), frames=np.zeros((0, 0), np.float32))],
    "all at once": [Turn("Answer.", (ICON, STRIP), (FILM,), frames=np.zeros((0, 0), np.float32))],
}


@dataclass(frozen=True, slots=True)
class Seeing:
    """A package, loaded, and its checkpoint in transformers."""

    model: cabochon.Model
    reference: SeeingReference


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that sees with 140 tokens by default, hears, and whose template shows videos."""
    folder = tmp_path_factory.mktemp("checkpoints") / "seeing"
    kinds = ["sliding_attention", "full_attention", "full_attention"]  # few, because they are soon converted
    config = small_config(
        layer_types=kinds, num_hidden_layers=len(kinds), num_kv_shared_layers=1, max_position_embeddings=1024
    )
    write_random_checkpoint(folder, config, RandomWeights())
    let_template_show_videos(folder)
    processor = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps(processor | {"image_seq_length": BUDGET}))
    return folder


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> SeeingReference:
    return SeeingReference(checkpoint, BUDGET, FRAME_BUDGET)


@pytest.fixture(scope="module", params=["onnx", "litert"])
def seeing(
    request: pytest.FixtureRequest,
    checkpoint: Path,
    reference: SeeingReference,
    tmp_path_factory: pytest.TempPathFactory,
) -> Seeing:
    folder = tmp_path_factory.mktemp("packages") / request.param
    convert_checkpoint(
        checkpoint, folder, ConversionSettings(RECIPES["float"], target=request.param, context_length=1024)
    )
    return Seeing(cabochon.load(folder), reference)


def ask(
    model: cabochon.Model, turns: list[Turn], monkeypatch: pytest.MonkeyPatch, sight: cabochon.SightSettings
) -> tuple[cabochon.Answer, list[Float32Array]]:
    """The model's answer, and the logits that it begins with."""
    seen: list[Float32Array] = []
    prefill = cabochon.pipeline.prefill

    def record(*arguments: object) -> Float32Array:
        logits = prefill(*arguments)  # type: ignore[arg-type]
        seen.append(logits.copy())
        return logits

    monkeypatch.setattr(cabochon.pipeline, "prefill", record)
    messages = [
        cabochon.Message(turn.role, turn.text, turn.frames is not None, images=turn.images, videos=turn.videos)
        for turn in turns
    ]
    sound = SOUND if any(message.has_audio for message in messages) else None
    answer = model.chat(messages, cabochon.SamplingSettings(), NEW_TOKENS, sound, sight=sight)
    return answer, seen


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_is_answered_as_by_transformers(
    seeing: Seeing, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, turns = seeing.model, list(CONVERSATIONS[name])
    frames = model.audio_model.make_frames(SOUND)
    tokens = len(model._session.audio_encoder.encode(frames))  # type: ignore[union-attr]
    turns = [
        turn if turn.frames is None else Turn(turn.text, turn.images, turn.videos, frames, tokens) for turn in turns
    ]
    inputs = seeing.reference.inputs(turns)
    answer, recorded = ask(model, turns, monkeypatch, cabochon.SightSettings())
    text = answer.finish()
    manifest = model.package.manifest
    assert answer.statistics.prompt_positions == inputs["input_ids"].shape[1]
    cap = manifest.text.final_logit_softcap
    found = cap * np.tanh(recorded[0] / cap) if cap else recorded[0]
    suppress = manifest.sampling.suppress_tokens
    expected, expected_text = seeing.reference.answer(inputs, answer.statistics.new_tokens, suppress)
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()
    assert text == expected_text


def test_another_image_or_order_gives_other_logits(seeing: Seeing, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the comparison above would see a wrong image: of one size, all three orders and images take as many tokens."""
    found = []
    for images in ((ICON, FILM[0]), (FILM[0], ICON), (ICON, FILM[1])):
        answer, recorded = ask(seeing.model, [Turn("What?", images)], monkeypatch, cabochon.SightSettings())
        answer.finish()
        found.append(recorded[0])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(found[one] - found[other]).max() > 100 * TOLERANCE * np.abs(found[one]).max()


def test_a_smaller_budget_takes_fewer_tokens_of_the_prompt(seeing: Seeing, checkpoint: Path) -> None:
    message, greedy = cabochon.Message("user", "What is this?", images=[PHOTOGRAPH]), cabochon.SamplingSettings()
    for budget in (70, 140):
        answer = seeing.model.chat([message], greedy, 1, sight=cabochon.SightSettings(image_tokens=budget))
        inputs = SeeingReference(checkpoint, budget).inputs([Turn("What is this?", (PHOTOGRAPH,))])
        answer.finish()
        assert answer.statistics.prompt_positions == inputs["input_ids"].shape[1]
