"""A checkpoint with an adapter is the model that peft makes of both."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora_adapters import load_plain, peft_warnings_allowed, train_adapter
from refusals import refused

from cabochon.errors import RequestError
from cabochon_convert.checkpoint import Checkpoint, open_checkpoint
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.progress import Silence
from cabochon_convert.questions import Prompt
from cabochon_convert.recipes import HEAD, RECIPES
from cabochon_convert.reference import ReferenceModel
from cabochon_convert.source import AdapterSource, CheckpointSource, open_source
from cabochon_convert.verify import verify_packages

# peft multiplies factors in float32, this converter in float64; measured 2e-7 of the largest value.
TOLERANCE = 2e-6
# float32 sums in another order; measured 3.4e-6 of the largest logit.
LOGIT_TOLERANCE = 1e-5
GATE = "per_layer_input_gate"
"""A name that only linear layers of the text decoder have."""
LINEARS = r".*language_model.*\.[a-z]+_proj"
PROMPT = Prompt((2, *range(300, 340)), None)


def with_adapter(checkpoint: Path, folder: Path) -> CheckpointSource:
    return CheckpointSource(checkpoint, checkpoint.name, adapter=AdapterSource(folder, folder.name))


def read_all(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {
        name: checkpoint.read(name, checkpoint.record(name).shape, may_be_infinite=True) for name in checkpoint.names
    }


def differing(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> set[str]:
    return {name for name in first if not np.array_equal(first[name], second[name])}


CASES: dict[str, dict[str, Any]] = {
    "text": {"target_modules": LINEARS, "lora_alpha": 6},
    "rank-stabilized": {"target_modules": LINEARS, "lora_alpha": 6, "use_rslora": True},
    "DoRA": {"target_modules": LINEARS, "use_dora": True},
    "patterns": {
        "target_modules": r".*language_model.*\.(q_proj|up_proj|per_layer_input_gate|per_layer_projection)",
        "rank_pattern": {"layers.2.self_attn.q_proj": 2, "up_proj": 6},
        "alpha_pattern": {r"layers\.[01]\.mlp\.up_proj": 32, "up_proj": 3},
    },
    "fan-in": {"target_modules": [GATE, "per_layer_model_projection"], "fan_in_fan_out": True},
    "some layers": {
        "target_modules": [GATE, "per_layer_projection"], "layers_to_transform": [1, 5], "layers_pattern": "layers",
    },
    "clipped linears": {"target_modules": r".*audio_tower.*\.(q_proj|ffw_layer_1|linear_start)\.linear"},
    "all linear": {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
    "per-layer embeddings": {"target_modules": [GATE, "embed_tokens_per_layer"]},
    "saved whole": {
        "target_modules": [GATE], "modules_to_save": ["embedding_projection", "per_layer_projection_norm"],
    },
}  # fmt: skip


@pytest.mark.parametrize("case", list(CASES))
def test_every_merged_tensor_is_that_of_pefts_merged_model(case: str, random_checkpoint: Path, tmp_path: Path) -> None:
    wrapped = train_adapter(random_checkpoint, tmp_path / "adapter", **CASES[case])
    with peft_warnings_allowed():
        expected = {name: value.numpy() for name, value in wrapped.merge_and_unload().state_dict().items()}
    found = read_all(open_source(with_adapter(random_checkpoint, tmp_path / "adapter")))
    assert expected.keys() - found.keys() <= {HEAD}
    for name in expected.keys() & found.keys():
        finite = np.isfinite(expected[name])
        scale = np.abs(expected[name][finite]).max(initial=1)
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=TOLERANCE * scale, err_msg=name)
    changed = differing(found, read_all(open_checkpoint(random_checkpoint)))
    assert changed == set(open_source(with_adapter(random_checkpoint, tmp_path / "adapter")).changed_names)
    assert changed


TIED_CASES: dict[str, tuple[bool, dict[str, Any]]] = {
    "embeddings": (True, {"target_modules": [GATE, "embed_tokens"]}),
    "output matrix": (True, {"target_modules": ["lm_head"]}),
    "both": (True, {"target_modules": ["embed_tokens", "lm_head"]}),
    "both alike": (False, {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}),
    "embeddings whole": (True, {"target_modules": [GATE], "modules_to_save": ["embed_tokens"]}),
    "both whole": (True, {"target_modules": [GATE], "modules_to_save": ["lm_head", "embed_tokens"]}),
    "both whole and alike": (
        False, {"target_modules": [GATE], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("memory", [0, 1 << 40])
@pytest.mark.parametrize("case", ["DoRA", "per-layer embeddings", *TIED_CASES])
def test_the_reference_gives_what_pefts_unmerged_model_gives(
    case: str, memory: int, random_checkpoint: Path, tmp_path: Path
) -> None:
    parts_head, settings = TIED_CASES.get(case) or (False, CASES[case])
    wrapped = train_adapter(random_checkpoint, tmp_path / "adapter", **settings)
    with torch.no_grad():
        expected = wrapped(input_ids=torch.tensor([PROMPT.tokens])).logits[0].numpy()
        plain = load_plain(random_checkpoint)(input_ids=torch.tensor([PROMPT.tokens])).logits[0].numpy()
    source = with_adapter(random_checkpoint, tmp_path / "adapter")
    assert open_source(source).has_own_head == parts_head
    ((_, found),) = ReferenceModel(source, Silence(), memory).logits([PROMPT], [len(PROMPT.tokens)])
    assert np.abs(found - expected).max() <= LOGIT_TOLERANCE * np.abs(expected).max()
    assert np.abs(found - plain).max() > 0.01 * np.abs(expected).max()


@pytest.fixture(scope="module")
def parted(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[CheckpointSource, Path]:
    """An adapter that changes the token embeddings but not the tied output matrix, and its float package."""
    folder = tmp_path_factory.mktemp("parted")
    train_adapter(random_checkpoint, folder / "adapter", **TIED_CASES["embeddings"][1])
    source = with_adapter(random_checkpoint, folder / "adapter")
    conversion = convert_checkpoint(source, folder / "package", ConversionSettings(RECIPES["float"]))
    assert any("the package holds both" in note for note in conversion.notes)
    return source, folder / "package"


def test_a_float_package_with_an_adapter_passes_its_verification(parted: tuple[CheckpointSource, Path]) -> None:
    source, package = parted
    (report,) = verify_packages([package], source, Silence())
    assert report.passed
    # float32 sums in another order, as without an adapter.
    assert max(comparison.relative_error for comparison in (*report.logits, *report.audio)) <= 2e-5


def test_a_package_is_only_verified_with_its_own_adapter(
    parted: tuple[CheckpointSource, Path], random_package: Path, tmp_path: Path
) -> None:
    source, package = parted
    assert source.adapter is not None
    other = Path(shutil.copytree(source.adapter.folder, tmp_path / "other"))
    (other / "adapter_config.json").write_text((other / "adapter_config.json").read_text() + "\n")
    for found in (None, AdapterSource(other, "other")):
        with refused(RequestError, str(package), "adapter", "--lora"):
            verify_packages([package], replace(source, adapter=found), Silence())
    with refused(RequestError, str(random_package), "without"):
        verify_packages([random_package], source, Silence())
    with refused(RequestError, str(random_package), str(package), "separately"):
        verify_packages([package, random_package], source, Silence())
