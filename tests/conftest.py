"""Checkpoints and packages that many tests share, made once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openai
import pytest
import soundfile
import torch
from demo_references import BY_LANGUAGE, DEMO
from filelock import FileLock
from hypothesis import HealthCheck, settings
from random_checkpoint import RandomWeights, small_config, write_random_checkpoint
from random_drafter import drafter_config, random_drafter, write_drafter
from served import Served
from verified import VerifiedPackages, verify_small_model

from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.recipes import RECIPES

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = REPOSITORY / "models" / "tiny"
DRAFTING_CACHES = (160, 320)
"""Both longer than the model's window; no caches are shorter than the first, which prefill reads of sliding ones."""
GOLDEN_MANIFEST = REPOSITORY / "tests" / "golden" / "manifest.json"

# A busy machine must not make a test fail; a property that needs files takes a folder that its examples share. CI
# always draws the same examples, so that it judges the change; by hand, each run hunts with new ones.
settings.register_profile(
    "cabochon",
    deadline=None,
    max_examples=60,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("cabochon")


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the memory of checked files out of the home directory of whoever runs the tests."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    patch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def own_processor(worker_id: str) -> None:
    """Each process of a parallel run computes on a processor of its own: threads would wait for one another."""
    if worker_id == "master" or not hasattr(os, "sched_setaffinity"):
        return
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[int(worker_id.removeprefix("gw")) % len(processors)]})
    torch.set_num_threads(1)


def make_once(name: str, tmp_path_factory: pytest.TempPathFactory, make: Callable[[Path], object]) -> Path:
    """A folder that is made by whichever test needs it first, of all processes of this run."""
    ours = tmp_path_factory.getbasetemp()
    shared = (ours.parent if "PYTEST_XDIST_WORKER" in os.environ else ours) / "made-once"
    shared.mkdir(exist_ok=True)
    folder = shared / name
    with FileLock(shared / f"{name}.lock"):
        if not folder.exists():
            make(folder)
    return folder


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint with finite clip bounds and vestigial tensors, in two shards."""
    folder = tmp_path_factory.mktemp("checkpoints") / "random"
    return write_random_checkpoint(folder, small_config(), RandomWeights(shards=2))


@pytest.fixture(scope="session")
def random_package(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random checkpoint, converted without rounding."""
    folder = tmp_path_factory.mktemp("packages") / "random"
    convert_checkpoint(random_checkpoint, folder, ConversionSettings(RECIPES["float"]))
    return folder


@pytest.fixture(scope="session", params=["float", "int8", "int4-mixed"])
def tiny_onnx_package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/tiny, converted for onnxruntime with each recipe."""
    return convert_tiny(request.param, tmp_path_factory)


@pytest.fixture(scope="session", params=["onnx float", "onnx int8", "onnx int4-mixed", "litert int4-mixed"])
def tiny_package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/tiny, converted for each engine."""
    engine, recipe = request.param.split()
    if engine == "litert":
        return request.getfixturevalue("tiny_litert_package")
    return convert_tiny(recipe, tmp_path_factory)


def convert_tiny(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/tiny, converted for onnxruntime: a folder that all tests share."""
    settings = ConversionSettings(RECIPES[recipe])
    return make_once(f"tiny-{recipe}", tmp_path_factory, lambda folder: convert_checkpoint(TINY, folder, settings))


@pytest.fixture(scope="session")
def tiny_litert_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/tiny, converted for LiteRT with the default recipe, and with caches of two lengths."""
    settings = ConversionSettings(RECIPES["int4-mixed"], target="litert", context_length=2048)
    return make_once("tiny-litert", tmp_path_factory, lambda folder: convert_checkpoint(TINY, folder, settings))


@pytest.fixture(scope="session")
def tiny_litert_float_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/tiny, converted for LiteRT without rounding."""
    settings = ConversionSettings(RECIPES["float"], target="litert", context_length=1000)
    return make_once("tiny-litert-float", tmp_path_factory, lambda folder: convert_checkpoint(TINY, folder, settings))


@pytest.fixture(scope="session")
def drafting_litert_package(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random checkpoint for LiteRT without rounding, with a random drafter and short caches of two lengths."""
    config = drafter_config(small_config())

    def make(folder: Path) -> None:
        drafter = write_drafter(tmp_path_factory.mktemp("drafter") / "drafter", config, random_drafter(config))
        settings = ConversionSettings(
            RECIPES["float"], target="litert", text_only=True, drafter=drafter, context_length=DRAFTING_CACHES[-1]
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cabochon.cache_lengths.SHORTEST_CACHE", 1)
            convert_checkpoint(random_checkpoint, folder, settings)

    return make_once("drafting-litert", tmp_path_factory, make)


@pytest.fixture(scope="session")
def verified(tmp_path_factory: pytest.TempPathFactory) -> VerifiedPackages:
    """models/tiny, converted with two recipes and verified in one run."""
    return verify_small_model(TINY, tmp_path_factory.mktemp("verified"))


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    """OpenAI's own client, of the server that a module calls `served`."""
    return served.client()


@pytest.fixture(scope="session")
def long_sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An English sentence, over and over, for more than half a minute."""
    waveform, rate = soundfile.read(DEMO / BY_LANGUAGE["en"]["file"], dtype="float32")
    path = tmp_path_factory.mktemp("sounds") / "long.flac"
    soundfile.write(path, np.concatenate([waveform, np.zeros(rate, np.float32)] * 11), rate)
    return path
