"""The examples do what they say, run as a user runs them, with the small model."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import REPOSITORY, TINY, convert_tiny
from demo_references import BY_LANGUAGE, DEMO
from lora_adapters import train_adapter
from tool_package import convert_with_tools

from cabochon.tokenizer import Tokenizer

EXAMPLES = REPOSITORY / "examples"
GERMAN = BY_LANGUAGE["de"]
SECONDS = 120
CALL = '<|tool_call>call:current_time{{zone:<|"|>{zone}<|"|>}}<tool_call|><|tool_response>'


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_tiny("int4-mixed", tmp_path_factory)


@pytest.fixture(scope="module")
def two_sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A German sentence, a pause, and the sentence again."""
    waveform, rate = soundfile.read(DEMO / GERMAN["file"], dtype="float32")
    path = tmp_path_factory.mktemp("sounds") / "twice.wav"
    soundfile.write(path, np.concatenate([waveform, np.zeros(rate, np.float32), waveform]), rate)
    return path


def run_example(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / name, *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=SECONDS, check=False)


def test_a_file_is_translated_part_by_part(package: Path, two_sentences: Path) -> None:
    result = run_example("translate_file.py", package, two_sentences, "--from", "German", "--to", "English")
    assert result.returncode == 0, result.stderr
    times, *said = result.stdout.splitlines()
    assert times.startswith("0.")
    assert len(said) == 5
    assert [said[0].strip(), said[1].strip()] == [said[3].strip(), said[4].strip()] == [GERMAN["de"], GERMAN["en"]]


def test_what_is_spoken_is_translated_while_it_is_heard(package: Path, two_sentences: Path) -> None:
    result = run_example("live.py", package, "--from", "de", "--to", "en", "--file", two_sentences)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [GERMAN["de"], GERMAN["en"]] * 2
    assert result.stderr.count("after the last word") == 2


def test_a_fine_tune_is_converted_and_compared_with_the_merged_model(tmp_path: Path) -> None:
    train_adapter(TINY, tmp_path / "adapter", target_modules=r".*language_model.*\.(q_proj|down_proj)")
    result = run_example("convert_finetune.py", TINY, tmp_path / "adapter", tmp_path / "package", "--recipe", "float")
    assert result.returncode == 0, result.stderr
    assert "verdict: passed" in result.stdout
    manifest = json.loads((tmp_path / "package" / "manifest.json").read_text())
    assert manifest["source"]["adapter"]["name"] == "adapter"
    assert json.loads((tmp_path / "package" / "report.json").read_text())["passed"]


def test_tools_are_called_until_the_model_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The small model knows no tools, so its tokens are laid into its mouth; everything else is real."""
    tokenizer = Tokenizer(TINY / "tokenizer.json")
    said = [CALL.format(zone="Asia/Tokyo"), CALL.format(zone="Nowhere"), "It is late.<turn|>"]
    answers = iter([iter(tokenizer.encode(text)) for text in said])

    class Scripted:
        def __init__(self, *_: object) -> None:
            self._tokens: Iterator[int] = next(answers)

        def choose(self, _: np.ndarray) -> int:
            return next(self._tokens)

    monkeypatch.setattr("cabochon.answer_writer.Sampler", Scripted)
    package = convert_with_tools(TINY, tmp_path)
    monkeypatch.setattr(sys, "argv", ["tools.py", os.fspath(package), "What time is it in Tokyo?"])
    example = runpy.run_path(os.fspath(EXAMPLES / "tools.py"), run_name="__main__")
    output, notes = capsys.readouterr()
    assert output == "It is late.\n"
    assert notes.splitlines() == [f"calls current_time with {{'zone': '{zone}'}}" for zone in ("Asia/Tokyo", "Nowhere")]
    made_up = example["cabochon"].ToolCall("current_time", {"zone": "Nowhere"})
    assert "Nowhere" in json.loads(example["carry_out"](made_up))["error"]


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("translate_file.py", ("no.wav", "--from", "German", "--to", "English")),
        ("live.py", ("--from", "German", "--to", "English", "--file", "no.wav")),
        ("tools.py", ("What time is it?",)),
    ],
)
def test_what_is_missing_is_told_in_one_sentence(name: str, rest: tuple[str, ...], tmp_path: Path) -> None:
    result = run_example(name, tmp_path / "nothing", *rest)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert "nothing" in result.stderr
