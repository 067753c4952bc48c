"""A sound of any length, through the Python API and the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from commands import CABOCHON, assert_refused, run_command, start_command
from conftest import TINY
from demo_references import BY_LANGUAGE as REFERENCES
from refusals import refused

import cabochon
from cabochon.long_speech import SpokenPart, transcribe_long, translate_long
from cabochon.segmentation import Segmentation

SPOKEN = ("en", "de", "es")
"""Languages that the small model tells apart by itself."""
RATE = 16_000
GAP = 0.9


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from conftest import convert_tiny

    return convert_tiny("int4-mixed", tmp_path_factory)


@pytest.fixture(scope="module")
def model(package: Path) -> cabochon.Model:
    return cabochon.load(package)


@pytest.fixture(scope="module")
def utterances() -> list[np.ndarray]:
    """Sentences in turns."""
    sounds = [soundfile.read(TINY / "demo" / REFERENCES[each]["file"], dtype="float32")[0] for each in SPOKEN]
    return sounds * 5


@pytest.fixture(scope="module")
def long_file(utterances: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than half a minute of them with pauses, at another rate and with two channels."""
    gap = np.zeros(round(GAP * RATE), np.float32)
    waveform = np.concatenate([gap, *(piece for each in utterances for piece in (each, gap))])
    path = tmp_path_factory.mktemp("sounds") / "long.wav"
    soundfile.write(path, waveform, RATE)
    assert len(waveform) > 31 * RATE
    return path


def test_the_parts_of_a_long_sound_say_what_its_sentences_say_alone(
    model: cabochon.Model, utterances: list[np.ndarray], long_file: Path
) -> None:
    speech = transcribe_long(model, long_file)
    parts = list(speech)
    alone = [model.transcribe(each).finish() for each in utterances]
    assert alone == [REFERENCES[each][each] for each in SPOKEN] * 5
    same = sum(part.transcript == text for part, text in zip(parts, alone, strict=True))
    assert same >= 0.85 * len(alone)
    begin = GAP
    for part, each in zip(parts, utterances, strict=True):
        assert part.start < begin + 0.3
        assert part.end > begin + len(each) / RATE - 0.5
        assert part.end - part.start < len(each) / RATE + 0.5
        begin += len(each) / RATE + GAP
    assert speech.seconds == pytest.approx(begin)


def test_parts_are_translated(model: cabochon.Model, utterances: list[np.ndarray]) -> None:
    gap = np.zeros(RATE, np.float32)
    speech = translate_long(model, np.concatenate([utterances[0], gap] * 3), source="English", target="German")
    assert [(part.transcript, part.translation) for part in speech] == [
        (REFERENCES["en"]["en"], REFERENCES["en"]["de"])
    ] * 3


def test_a_waveform_is_heard_like_its_file_and_may_begin_later(model: cabochon.Model, long_file: Path) -> None:
    waveform, _ = soundfile.read(long_file, dtype="float32")
    whole = list(transcribe_long(model, long_file))
    assert list(transcribe_long(model, waveform)) == whole
    later = list(transcribe_long(model, long_file, start=whole[3].end))
    assert [part.transcript for part in later] == [part.transcript for part in whole[4:]]


def test_silence_has_no_parts(model: cabochon.Model) -> None:
    assert list(transcribe_long(model, np.zeros(40 * RATE, np.float32), "English")) == []


def test_memory_does_not_grow_with_the_length_of_a_sound(model: cabochon.Model, tmp_path: Path) -> None:
    path = tmp_path / "minutes.flac"
    soundfile.write(path, np.zeros(300 * RATE, np.float32), RATE)
    tracemalloc.start()
    assert list(transcribe_long(model, path, "English")) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Five minutes are 19 MB of float32.
    assert peak < 5e6


@pytest.mark.parametrize("sound", [np.zeros((4, 2), np.float32), np.full(9, 2.0), np.zeros(9, np.int16), None])
def test_what_is_no_waveform_is_refused(model: cabochon.Model, sound: object) -> None:
    with refused(cabochon.AudioError, "waveform"):
        transcribe_long(model, sound, "English")  # type: ignore[arg-type]


def test_languages_are_checked_before_anything_is_heard(model: cabochon.Model, long_file: Path) -> None:
    with refused(cabochon.RequestError, "xx"):
        transcribe_long(model, long_file, "xx")
    with refused(cabochon.RequestError, "German"):
        translate_long(model, long_file, source="German", target="de")


def test_the_command_prints_parts_with_their_times(package: Path, long_file: Path) -> None:
    result = run_command(CABOCHON, "transcribe", package, long_file)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 15
    assert re.fullmatch(r"\[00:00:00\.\d{3} - 00:00:0\d\.\d{3}\] " + re.escape(REFERENCES["en"]["en"]), lines[0])


def test_interrupted_work_is_gone_on_with_by_the_same_command(
    package: Path, long_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Long enough to be interrupted before its end.
    waveform, _ = soundfile.read(long_file, dtype="float32")
    longer = tmp_path_factory.mktemp("sounds") / "longer.wav"
    soundfile.write(longer, np.tile(waveform, 4), RATE)
    tmp_path = tmp_path_factory.mktemp("output")
    output = tmp_path / "long.json"
    command = [CABOCHON, "transcribe", str(package), str(longer), "--output", str(output)]
    process = start_command(*command)
    unfinished = output.with_name("long.json.unfinished")
    while not unfinished.exists() or len(unfinished.read_bytes().splitlines()) < 4:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "same command" in errors
    assert "Traceback" not in errors
    assert not output.exists()
    kept = len(unfinished.read_bytes().splitlines()) - 1
    result = run_command(*command)
    assert result.returncode == 0, result.stderr
    assert "going on at" in result.stderr
    parts = [SpokenPart(**part) for part in json.loads(output.read_text(encoding="utf-8"))["parts"]]
    assert [path.name for path in tmp_path.iterdir()] == ["long.json"]
    whole = list(transcribe_long(cabochon.load(package), longer))
    assert 3 <= kept < len(whole)
    assert [part.transcript for part in parts] == [part.transcript for part in whole]


def test_outputs_that_cannot_be_are_refused_before_anything_is_heard(
    package: Path, long_file: Path, tmp_path: Path
) -> None:
    command = [CABOCHON, "transcribe", package, long_file, "--output"]
    assert_refused(run_command(*command, tmp_path / "a.doc"), "a.doc", ".srt")
    assert_refused(run_command(*command, tmp_path / "missing" / "a.srt"), "folder does not exist")
    (tmp_path / "a.srt").write_text("mine")
    assert_refused(run_command(*command, tmp_path / "a.srt"), "--replace")
    assert (tmp_path / "a.srt").read_text() == "mine"
    assert_refused(run_command(*command, tmp_path / "b.srt", "--longest", "1"), "at most 1 s")


def test_short_parts_can_be_asked_for(model: cabochon.Model, long_file: Path) -> None:
    parts = list(transcribe_long(model, long_file, segmentation=Segmentation(longest=2.0)))
    assert max(part.end - part.start for part in parts) <= 2.0


def test_a_file_is_listened_to_like_a_microphone(package: Path, long_file: Path) -> None:
    process = start_command(CABOCHON, "listen", package, "--input", long_file, "--json")
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    assert first["transcript"] == REFERENCES["en"]["en"]
    assert 0.5 < first["delay"] < 10
    # What was said before is still answered, and nothing after it.
    time.sleep(2.8)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    second, *others = rest.splitlines()
    # Cut a little earlier or later, its last words may differ.
    assert json.loads(second)["transcript"].startswith("Der Cocktail")
    assert len(others) <= 1


@pytest.mark.parametrize("engine", ["package", "tiny_litert_package"])
def test_the_recorder_of_the_system_is_heard(
    engine: str, long_file: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    package: Path = request.getfixturevalue(engine)
    waveform, _ = soundfile.read(long_file, dtype="int16")
    (tmp_path / "spoken.raw").write_bytes(waveform[: 3 * RATE].tobytes())
    recorder = tmp_path / "arecord"
    recorder.write_text(f"#!/bin/sh\ncat {tmp_path}/spoken.raw\n")
    recorder.chmod(0o755)
    result = run_command(
        CABOCHON, "listen", package, "--from", "en", "--to", "de", "--speak", f"tee {tmp_path}/said",
        PATH=f"{tmp_path}:{os.environ['PATH']}",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [REFERENCES["en"]["en"], REFERENCES["en"]["de"]]
    assert (tmp_path / "said").read_text() == REFERENCES["en"]["de"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--to", "German"], "--from"),
        (["--from", "xx"], "xx"),
        (["--speak", "no-such-command"], "no-such-command"),
        (["--input", "missing.wav"], "missing.wav"),
        (["--pause", "99"], "pause"),
    ],
)
def test_what_cannot_be_listened_to_is_refused(package: Path, options: list[str], words: str) -> None:
    assert_refused(run_command(CABOCHON, "listen", package, *options), words)


def test_a_microphone_that_fails_ends_with_one_sentence(package: Path, tmp_path: Path) -> None:
    recorder = tmp_path / "arecord"
    recorder.write_text("#!/bin/sh\nexit 1\n")
    recorder.chmod(0o755)
    result = run_command(CABOCHON, "listen", package, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert result.returncode == 2
    assert "arecord ended with status 1" in result.stderr
    assert "Traceback" not in result.stderr
