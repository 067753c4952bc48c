from __future__ import annotations

import json
from pathlib import Path

import jiwer
import numpy as np
import pytest
import sacrebleu
from commands import CONVERT, assert_refused, run_command
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st
from verified import VerifiedPackages

from cabochon.package import open_package
from cabochon.prompt import split_translation
from cabochon_convert.fidelity import TaskFidelity, agreement, divergence, log_softmax

LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=5, max_size=5)


def tasks(verified: VerifiedPackages, recipe: str) -> dict[str, TaskFidelity]:
    return {task.title: task for task in verified.reports[recipe].tasks}


def test_every_task_of_the_data_is_measured(verified: VerifiedPackages) -> None:
    found = tasks(verified, "int4")
    assert [(title, len(task.answers)) for title, task in found.items()] == [
        ("Transcription", 2),
        ("Translation into German", 1),
        ("Typed prompts", 2),
    ]
    for task in found.values():
        assert 0 < task.divergence < 1
        assert 0 < task.same_top_token <= 1
        assert 0 <= task.agreeing_tokens <= 1
        assert min(task.perplexity, task.reference_perplexity) >= 1


def test_a_float_package_answers_like_its_checkpoint(verified: VerifiedPackages) -> None:
    for task in tasks(verified, "float").values():
        assert task.same_answers == len(task.answers)
        assert task.agreeing_tokens == task.same_top_token == 1
        # float32 sums in another order.
        assert task.divergence < 1e-8
        assert task.perplexity == pytest.approx(task.reference_perplexity, rel=1e-4)
        assert task.rates is not None
        assert task.rates.word_error_rate == task.rates.reference_word_error_rate
        assert task.rates.chrf == task.rates.reference_chrf


def test_rates_are_those_of_the_answers_in_the_report(verified: VerifiedPackages) -> None:
    found = tasks(verified, "int4")
    transcription = found["Transcription"]
    assert transcription.rates is not None
    texts, answers = [a.text or "" for a in transcription.answers], [a.answer for a in transcription.answers]
    assert transcription.rates.word_error_rate == pytest.approx(100 * jiwer.wer(texts, answers))
    assert transcription.rates.chrf == pytest.approx(sacrebleu.corpus_chrf(answers, [texts]).score)


def test_a_translation_is_held_against_its_own_line(verified: VerifiedPackages) -> None:
    task = tasks(verified, "int4")["Translation into German"]
    (answer,) = task.answers
    assert task.rates is not None
    assert answer.text == "The swimming pool & the <b>bar</b> are closed.\nGerman: Das Schwimmbad ist geschlossen."
    prompts = open_package(verified.folders["int4"]).manifest.prompts
    transcript, translation = split_translation(answer.answer, prompts, "German")
    assert task.rates.word_error_rate == pytest.approx(
        100 * jiwer.wer("The swimming pool & the <b>bar</b> are closed.", transcript)
    )
    expected = sacrebleu.corpus_chrf([translation], [["Das Schwimmbad ist geschlossen."]]).score
    assert task.rates.chrf == pytest.approx(expected)


def test_a_prompt_without_an_expected_answer_is_measured_along_the_checkpoints_own(verified: VerifiedPackages) -> None:
    free, expected = tasks(verified, "int4")["Typed prompts"].answers
    assert (free.text, expected.text) == (None, "Good morning!")
    # The likeliest of so many tokens has at least this share.
    vocabulary_size = open_package(verified.folders["int4"]).manifest.text.vocabulary_size
    assert 1 <= free.reference_perplexity < vocabulary_size


def test_the_report_files_hold_what_was_measured_and_every_package_of_the_run(verified: VerifiedPackages) -> None:
    for row, (recipe, folder) in enumerate(verified.folders.items(), start=1):
        written = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        assert [task["title"] for task in written["tasks"]] == list(tasks(verified, recipe))
        assert (
            written["tasks"][0]["answers"][0]["divergence"] == verified.reports[recipe].tasks[0].answers[0].divergence
        )
        assert [figures["name"] for figures in written["compared"]] == ["checkpoint", "int4", "float"]
        assert written["compared"][written["own_row"]]["name"] == recipe
        assert written["own_row"] == row
        assert written["compared"][0]["size"] == (TINY / "model.safetensors").stat().st_size
        assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []


def test_the_commands_verify_what_they_are_told(verified: VerifiedPackages, tmp_path: Path) -> None:
    package = tmp_path / "package"
    result = run_command(CONVERT, TINY, package, "--recipe", "int8", "--verify")
    assert result.returncode == 0, result.stderr
    assert "typed prompts: " in result.stdout
    command = (CONVERT, "verify", package, verified.folders["float"], "--reference", TINY, "--data", verified.data)
    result = run_command(*command)
    assert result.returncode == 0, result.stderr
    for line in ("recipe int8", "recipe float", "translation into German: ", "word error rate", "chrF"):
        assert line in result.stdout
    assert result.stdout.count("report: ") == 2


def test_packages_of_different_checkpoints_are_not_compared(verified: VerifiedPackages, random_package: Path) -> None:
    result = run_command(CONVERT, "verify", verified.folders["int4"], random_package, "--reference", TINY)
    assert_refused(result, "another checkpoint", "separately")


def test_sounds_for_a_package_without_audio_encoder_are_refused(verified: VerifiedPackages, tmp_path: Path) -> None:
    package = tmp_path / "package"
    assert run_command(CONVERT, TINY, package, "--text-only").returncode == 0
    command = (CONVERT, "verify", package, "--reference", TINY)
    assert_refused(run_command(*command, "--data", verified.data), "audio encoder")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prompts.txt").write_text("Why?\tBecause.")
    result = run_command(*command, "--data", tmp_path / "data")
    assert result.returncode == 0, result.stderr


def test_a_prompt_that_is_longer_than_the_context_is_refused(verified: VerifiedPackages, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("why? " * 5000)
    command = (CONVERT, "verify", verified.folders["int4"], "--reference", TINY, "--data", tmp_path)
    assert_refused(run_command(*command), "positions", "--context-length")


def test_a_prompt_that_holds_the_placeholder_of_a_sound_is_refused(verified: VerifiedPackages, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("<|audio|>")
    command = (CONVERT, "verify", verified.folders["int4"], "--reference", TINY, "--data", tmp_path)
    assert_refused(run_command(*command), "<|audio|>", "sound")


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
