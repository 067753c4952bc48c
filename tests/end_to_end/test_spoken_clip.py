"""A clip that is heard while it is spoken gives the answer to the whole clip."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import TINY, convert_tiny
from demo_references import REFERENCES
from noted_runs import noted_runs
from refusals import refused

import cabochon
from cabochon.backend_litert import LitertDecoder
from cabochon.manifest import MANIFEST_NAME
from cabochon.package import open_package
from cabochon_convert.flatbuffer_litert import keep_signatures
from cabochon_convert.package import list_files, write_manifest
from cabochon_convert.progress import Silence

RATE = 16_000


@pytest.fixture(scope="module", params=["onnx float", "onnx int4-mixed", "litert float", "litert int4-mixed"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> cabochon.Model:
    engine, recipe = request.param.split()
    shared = {"float": "tiny_litert_float_package", "int4-mixed": "tiny_litert_package"}
    folder = request.getfixturevalue(shared[recipe]) if engine == "litert" else convert_tiny(recipe, tmp_path_factory)
    return cabochon.load(folder)


def waveform_of(reference: dict[str, str]) -> np.ndarray:
    waveform, _ = soundfile.read(TINY / "demo" / reference["file"], dtype="float32")
    return np.asarray(waveform)


def pieces_of(waveform: np.ndarray, size: int = 1600) -> Iterator[np.ndarray]:
    return (waveform[start : start + size] for start in range(0, len(waveform), size))


@pytest.mark.parametrize("reference", REFERENCES, ids=[each["file"] for each in REFERENCES])
def test_the_answer_to_a_clip_that_came_in_pieces_is_that_to_the_whole(
    model: cabochon.Model, reference: dict[str, str]
) -> None:
    waveform, languages = waveform_of(reference), (reference["source"], reference["target"])
    whole = model.translate(waveform, source=languages[0], target=languages[1])
    expected = whole.finish()
    clip = model.start_clip(languages[0], target=languages[1])
    assert clip is not None
    for piece in pieces_of(waveform):
        clip.push(piece)
    answer = model.finish_clip(clip, languages[1])
    assert answer.finish() == expected
    assert isinstance(answer, cabochon.Translation)
    assert (answer.transcript, answer.translation) == (whole.transcript, whole.translation)
    facts, others = answer.statistics, whole.statistics
    assert (facts.prompt_positions, facts.new_tokens) == (others.prompt_positions, others.new_tokens)
    assert facts.audio_seconds == others.audio_seconds
    assert facts.complete


def test_guesses_in_between_change_nothing(model: cabochon.Model) -> None:
    reference = REFERENCES[0]
    waveform = waveform_of(reference)
    expected = model.transcribe(waveform, reference["source"]).finish()
    clip = model.start_clip(reference["source"])
    assert clip is not None
    guesses = []
    for piece in pieces_of(waveform, 8000):
        clip.push(piece)
        guesses.append(clip.guess())
    assert model.finish_clip(clip).finish() == expected
    assert len(set(guesses)) > 1


@pytest.mark.parametrize("seconds", [1, 5, 10, 10.4, 11, 20])
def test_a_decoder_that_fills_its_runs_up_runs_once_when_the_clip_ends(
    tiny_litert_float_package: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    counts: list[int] = []
    run = LitertDecoder.run

    def note_and_run(decoder: LitertDecoder, inputs: np.ndarray, *others: Any, **options: Any) -> np.ndarray:
        counts.append(len(inputs))
        return run(decoder, inputs, *others, **options)

    model = cabochon.load(tiny_litert_float_package)
    clip = model.start_clip("en")
    assert clip is not None
    monkeypatch.setattr(LitertDecoder, "run", note_and_run)
    for piece in pieces_of(np.zeros(round(seconds * RATE), np.float32)):
        clip.push(piece)
    assert len(counts) == seconds // 5
    assert all(96 < count <= 128 for count in counts)
    counts.clear()
    clip.finish()
    (count,) = counts
    assert count <= 128


def test_another_answer_ends_a_clip_in_one_sentence(model: cabochon.Model) -> None:
    waveform = waveform_of(REFERENCES[0])
    clip = model.start_clip("en")
    assert clip is not None
    clip.push(waveform[:RATE])
    expected = model.transcribe(waveform, "en").finish()
    with refused(cabochon.RequestError, "another answer"):
        clip.push(waveform[RATE:])
    assert model.transcribe(waveform, "en").finish() == expected


def test_clips_that_cannot_be_are_refused(model: cabochon.Model) -> None:
    with refused(cabochon.RequestError, "spoken language"):
        model.start_clip(target="German")
    with refused(cabochon.RequestError, "xx"):
        model.start_clip("xx")
    short = model.start_clip("en")
    assert short is not None
    short.push(np.zeros(80, np.float32))
    with refused(cabochon.AudioError, "5 ms"):
        model.finish_clip(short)
    with refused(cabochon.RequestError, "has ended"):
        short.push(np.zeros(80, np.float32))
    long = model.start_clip("en")
    assert long is not None
    long.push(np.zeros(30 * RATE, np.float32))
    with refused(cabochon.AudioError, "30 s"):
        long.push(np.zeros(1, np.float32))
    # And the model is none the worse for it.
    reference = REFERENCES[0]
    assert model.transcribe(waveform_of(reference), "en").finish() == reference["en"]


@pytest.mark.parametrize("engine", ["onnx", "litert"])
def test_an_instruction_that_is_kept_changes_no_answer_and_is_not_run_again(
    engine: str,
    tiny_litert_package: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    package = tiny_litert_package if engine == "litert" else convert_tiny("int4-mixed", tmp_path_factory)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    reference = REFERENCES[0]
    asked = {"source": reference["source"], "target": reference["target"]}
    found, firsts = [], []
    for _ in range(2):  # processes, as it were
        model = cabochon.load(package)
        runs = noted_runs(model, monkeypatch)
        for _ in range(2):
            runs.clear()
            found.append(model.translate(waveform_of(reference), **asked).finish())
            firsts.append(runs[0][0])
    assert len(set(found)) == 1
    assert firsts[0] == 0
    assert len(set(firsts[1:])) == 1
    assert firsts[1] > 10


def test_a_package_without_steps_takes_whole_clips(tiny_litert_float_package: Path, tmp_path: Path) -> None:
    package = open_package(tiny_litert_float_package)
    encoder = package.manifest.engines["litert"].audio_encoder
    assert encoder is not None
    older = tmp_path / "older"
    shutil.copytree(package.folder, older)
    (features,) = (tensor for tensor in encoder.outputs if tensor.name == "features")
    whole = f"audio_{features.shape[1]}"
    keep_signatures(package.path(encoder.file), {whole: whole}, older / encoder.file)
    (older / MANIFEST_NAME).unlink()
    write_manifest(older, replace(package.manifest, files=list_files(older, Silence().advance)))
    model = cabochon.load(older)
    assert model.start_clip("en") is None
    reference = REFERENCES[0]
    assert model.transcribe(waveform_of(reference), "en").finish() == reference["en"]
