from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from commands import CONVERT, assert_refused, run_command
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from cabochon.errors import AudioError
from cabochon_convert.fidelity import agreement, divergence, log_softmax, read_examples
from cabochon_convert.report_page import render_page

LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=5, max_size=5)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The demo sounds as a user would bring his own."""
    folder = tmp_path / "data"
    folder.mkdir()
    for reference in json.loads((TINY / "demo" / "references.json").read_text(encoding="utf-8")):
        shutil.copy(TINY / "demo" / reference["file"], folder)
        (folder / reference["file"]).with_suffix(".txt").write_text(reference["en"] + "\n", encoding="utf-8")
    return folder


class Page(HTMLParser):
    """Finds the text of a page and whether it asks for anything from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def spoken_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spoken")
    shutil.copy(TINY / "demo" / "unseen_voice.wav", folder)
    (folder / "unseen_voice.txt").write_text("The swimming pool is closed on Sunday & Monday.")
    return folder


def test_a_package_is_compared_with_its_checkpoint_on_the_users_own_speech(spoken_data: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    assert run_command(CONVERT, TINY, package, "--recipe", "int4").returncode == 0
    result = run_command(CONVERT, "verify", package, "--reference", TINY, "--data", spoken_data)
    assert result.returncode == 0, result.stderr
    # "Sunday & Monday." against "Monday.": two words were not said, of nine.
    assert "word error rate: 22.22 % (checkpoint 22.22 %)" in result.stdout
    report = json.loads((package / "report.json").read_text(encoding="utf-8"))
    (example,) = report["speech"]["examples"]
    assert example["answer"] == example["reference_answer"] == "The swimming pool is closed on Monday."
    assert example["agreeing_tokens"] == example["tokens"] > 5
    assert 0 < example["divergence"] < 0.1
    page = Page((package / "report.html").read_text(encoding="utf-8"))
    assert page.links == []
    assert "script" not in page.tags
    assert page.tags.count("svg") == 4
    assert "The swimming pool is closed on Sunday & Monday." in page.words


def test_pairs_of_sounds_and_texts_are_read_in_name_order(data: Path) -> None:
    examples = read_examples(data)
    assert [example.sound.name for example in examples] == ["seen_voice.wav", "unseen_accent.wav", "unseen_voice.wav"]
    assert examples[1].text == "I would like 8 sandwiches, please."


def test_a_folder_that_is_no_speech_data_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with refused(AudioError, "empty", "no sound files"):
        read_examples(tmp_path / "empty")
    with refused(AudioError, "not a folder"):
        read_examples(tmp_path / "nowhere")
    (data / "seen_voice.txt").write_text(" \n")
    with refused(AudioError, "seen_voice.txt", "empty"):
        read_examples(data)
    (data / "seen_voice.txt").unlink()
    with refused(AudioError, "seen_voice.txt", "missing"):
        read_examples(data)


def test_wrong_speech_data_is_refused_before_the_conversion(tmp_path: Path) -> None:
    command = (CONVERT, TINY, tmp_path / "package", "--verify", "--data", tmp_path / "nowhere")
    assert_refused(run_command(*command), "nowhere")
    assert not (tmp_path / "package").exists()


@given(LOGITS, LOGITS)
def test_divergence_is_zero_for_equal_distributions_and_positive_for_others(
    first: list[float], second: list[float]
) -> None:
    ours, theirs = np.array([first], np.float32), np.array([second], np.float32)
    assert divergence(ours, ours) == pytest.approx(0)
    assert divergence(ours, ours + 3) == pytest.approx(0, abs=1e-6)
    assert divergence(ours, theirs) >= -1e-9
    assert np.exp(log_softmax(ours)).sum() == pytest.approx(1)


def test_divergence_is_that_of_the_textbook() -> None:
    ours = np.log(np.array([[0.5, 0.5]], np.float32))
    theirs = np.log(np.array([[0.9, 0.1]], np.float32))
    assert divergence(ours, theirs) == pytest.approx(0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5), rel=1e-5)


@pytest.mark.parametrize(
    ("found", "expected", "count"), [([1, 2, 3], [1, 2, 3], 3), ([1, 9], [1, 2, 3], 1), ([1], [1, 2], 1), ([], [], 0)]
)
def test_agreement_counts_tokens_before_the_first_difference(found: list[int], expected: list[int], count: int) -> None:
    assert agreement(found, expected) == count


def test_what_was_said_cannot_break_the_page() -> None:
    hostile = "<script>alert(1)</script>"
    example = {
        "sound": hostile, "text": hostile, "reference_answer": hostile, "answer": "x", "divergence": 0.0,
        "perplexity": 1.0, "reference_perplexity": 1.0,
    }  # fmt: skip
    speech = {"language": hostile, "examples": [example], "word_error_rate": 0.0, "reference_word_error_rate": 0.0}
    report = {
        "package": hostile, "recipe": "int4", "engine": "onnx", "size": 5, "tolerance": None, "passed": True,
        "audio": [], "logits": [], "speech": speech,
    }  # fmt: skip
    assert "script" not in Page(render_page(report)).tags
