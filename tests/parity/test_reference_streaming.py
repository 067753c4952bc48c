"""The reference gives what plainly loaded transformers gives, wherever its weights are and whatever runs beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import TINY
from random_checkpoint import RandomWeights, small_config, write_random_checkpoint
from refusals import refused

from cabochon_convert import reference_weights
from cabochon_convert.checkpoint import CheckpointError, open_checkpoint
from cabochon_convert.progress import Silence
from cabochon_convert.questions import Prompt
from cabochon_convert.reference import ReferenceModel

NO_MEMORY, SOME_MEMORY, MUCH_MEMORY = 0, 1 << 20, 1 << 40
MEL_BINS = 128
# float32 sums in another order, relative to the largest value; measured 1.5e-6.
BATCH_TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=["float32", "bfloat16", "trained"])
def checkpoint(
    request: pytest.FixtureRequest, random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    if request.param == "bfloat16":
        folder = tmp_path_factory.mktemp("checkpoints") / "bfloat16"
        return write_random_checkpoint(folder, small_config(), RandomWeights(storage="BF16", shards=2))
    return random_checkpoint if request.param == "float32" else TINY


@pytest.fixture(scope="module")
def prompts(checkpoint: Path) -> list[Prompt]:
    """Prompts of several lengths, with sounds of several lengths and without."""
    soft_token = json.loads((checkpoint / "config.json").read_text())["audio_token_id"]
    generator = np.random.default_rng(3)
    prompts = []
    for words, frames in ((30, 50), (60, 201), (20, 0), (90, 333), (1, 0)):
        before, after = generator.integers(300, 600, (2, words)).tolist()
        clip = generator.standard_normal((frames, MEL_BINS), dtype=np.float32)
        sound = [soft_token] * -(-frames // 4)
        prompts.append(Prompt((*before, *sound, *after), clip if frames else None))
    return prompts


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> Any:
    return transformers.Gemma4ForConditionalGeneration.from_pretrained(str(checkpoint), dtype=torch.float32).eval()


def open_reference(checkpoint: Path, memory: int = SOME_MEMORY) -> ReferenceModel:
    return ReferenceModel(checkpoint, Silence(), memory)


@pytest.mark.parametrize("memory", [NO_MEMORY, SOME_MEMORY, MUCH_MEMORY])
def test_logits_and_audio_embeddings_are_those_of_the_plainly_loaded_model(
    checkpoint: Path, plain: Any, prompts: list[Prompt], memory: int
) -> None:
    reference = open_reference(checkpoint, memory)
    for prompt in prompts[:3]:
        sound: dict[str, Any] = {}
        if prompt.frames is not None:
            mask = torch.ones((1, len(prompt.frames)), dtype=torch.bool)
            sound = {"input_features": torch.from_numpy(prompt.frames)[None], "input_features_mask": mask}
            with torch.no_grad():
                embeddings = plain.model.get_audio_features(*sound.values()).pooler_output[0]
            np.testing.assert_allclose(reference.audio_embeddings([prompt.frames])[0], embeddings, rtol=0, atol=1e-6)
        with torch.no_grad():
            expected = plain(input_ids=torch.tensor([prompt.tokens]), **sound).logits[0]
        ((_, found),) = reference.logits([prompt], [len(prompt.tokens)])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_values_that_no_checkpoint_holds_are_those_of_the_plainly_loaded_model(checkpoint: Path, plain: Any) -> None:
    model = reference_weights.load_model(checkpoint, MUCH_MEMORY, lambda: None)
    expected, found = dict(plain.named_buffers()), dict(model.named_buffers())
    # The reference answers no questions about images.
    expected = {name: value for name, value in expected.items() if not name.startswith("model.vision_tower.")}
    assert found.keys() == expected.keys()
    assert any(name.endswith("inv_freq") for name in found)
    assert any(name.endswith("input_min") for name in found)
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("memory", [NO_MEMORY, MUCH_MEMORY])
def test_prompts_that_run_together_give_what_each_gives_alone(
    checkpoint: Path, prompts: list[Prompt], memory: int
) -> None:
    reference = open_reference(checkpoint, memory)
    keep = [len(prompts[0].tokens), 7, 1, 50, 2]
    together = dict(reference.logits(prompts, keep))
    for index, prompt in enumerate(prompts):
        ((_, alone),) = reference.logits([prompt], [keep[index]])
        assert together[index].shape == alone.shape == (keep[index], alone.shape[1])
        assert np.abs(together[index] - alone).max() <= BATCH_TOLERANCE * np.abs(alone).max()
    clips = [prompt.frames for prompt in prompts if prompt.frames is not None]
    for clip, found in zip(clips, reference.audio_embeddings(clips), strict=True):
        (alone,) = reference.audio_embeddings([clip])
        assert np.abs(found - alone).max() <= BATCH_TOLERANCE * np.abs(alone).max()


def test_answers_that_are_written_together_are_those_written_alone(checkpoint: Path, prompts: list[Prompt]) -> None:
    reference = open_reference(checkpoint)
    counts = [10, 1, 30, 25, 5]
    # Whatever is often chosen ends some answers early.
    stop_tokens = [reference.greedy([prompts[0]], [10], [])[0][3]]
    together = reference.greedy(prompts, counts, [5], stop_tokens)
    for prompt, count, answer in zip(prompts, counts, together, strict=True):
        assert reference.greedy([prompt], [count], [5], stop_tokens) == [answer]
        assert 5 not in answer
    assert [len(answer) <= count for answer, count in zip(together, counts, strict=True)] == [True] * 5


def test_the_output_matrix_may_be_multiplied_in_parts(
    checkpoint: Path, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    ((_, whole),) = open_reference(checkpoint, MUCH_MEMORY).logits(prompts[:1], [5])
    monkeypatch.setattr(reference_weights, "HEAD_ROWS_AT_ONCE", 300)
    ((_, parts),) = open_reference(checkpoint, NO_MEMORY).logits(prompts[:1], [5])
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-6 * np.abs(whole).max())


def test_layers_leave_the_memory_unless_they_fit(checkpoint: Path) -> None:
    for memory in (NO_MEMORY, MUCH_MEMORY):
        layers = []
        model = reference_weights.load_model(checkpoint, memory, lambda layers=layers: layers.append(1))
        with torch.no_grad():
            model(input_ids=torch.tensor([[300, 301]]))
        decoder = model.get_submodule(reference_weights.DECODER_LAYERS)
        assert len(layers) == len(decoder)
        assert {value.is_meta for value in decoder.state_dict().values()} == {memory == NO_MEMORY}
        stored = open_checkpoint(checkpoint).record(f"{reference_weights.TOKEN_TABLE}.weight").storage
        dtypes = {"F32": torch.float32, "BF16": torch.bfloat16}
        assert model.get_submodule(reference_weights.TOKEN_TABLE).weight.dtype == dtypes[stored]


def test_a_quarter_of_the_containers_memory_may_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_weights, "CONTROL_GROUPS", tmp_path)
    unlimited = reference_weights.resident_memory()
    (tmp_path / "memory.max").write_text("max\n")
    assert reference_weights.resident_memory() == unlimited
    (tmp_path / "memory.max").write_text("4000000\n")
    assert reference_weights.resident_memory() == 1_000_000


def test_progress_moves_with_every_layer_and_ends_at_its_total(checkpoint: Path, prompts: list[Prompt]) -> None:
    stages: list[list[int]] = []

    class Recorder:
        def start(self, stage: str, total: int, unit: str) -> None:
            assert (stage.startswith("reference"), unit) == (True, "layer")
            stages.append([total])

        def advance(self, amount: int) -> None:
            stages[-1].append(amount)

    reference = ReferenceModel(checkpoint, Recorder())
    reference.greedy(prompts, [8] * 5, [])
    dict(reference.logits(prompts, [1] * 5))
    for total, *steps in stages:
        assert sum(steps) == total
        assert sum(step == 1 for step in steps) > 5


def test_weights_of_another_config_are_refused(random_checkpoint: Path, tmp_path: Path) -> None:
    for file in random_checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["intermediate_size"] *= 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with refused(CheckpointError, "shape", "config"):
        dict(open_reference(tmp_path, MUCH_MEMORY).logits([Prompt((300,), None)], [1]))
