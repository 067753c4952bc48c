from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from commands import CONVERT, assert_refused, run_command
from conftest import TINY
from refusals import refused

from cabochon_convert.evaluation_data import (
    BUILT_IN_PROMPTS,
    DataError,
    Translation,
    TypedPrompt,
    read_evaluation_data,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder as a user would bring it; nobody listens to the sounds."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("b.wav", "a.FLAC", "take.2.wav"):
        (folder / name).write_bytes(b"sound")
    (folder / "a.txt").write_text("\ufeffWhere is\nthe  station?\n", encoding="utf-8")
    (folder / "b.txt").write_text("Good morning.")
    (folder / "b.de.txt").write_text("Guten Morgen.")
    (folder / "b.FR.txt").write_text("Bonjour.")
    (folder / "take.2.txt").write_text("Again.")
    (folder / "take.2.es.txt").write_text("Otra vez.")
    return folder


def test_sounds_with_their_texts_and_translations_are_read_in_name_order(data: Path) -> None:
    spoken = read_evaluation_data(data, "English").spoken
    assert [example.sound.name for example in spoken] == ["a.FLAC", "b.wav", "take.2.wav"]
    assert [example.text for example in spoken] == ["Where is the station?", "Good morning.", "Again."]
    assert spoken[0].translations == ()
    assert spoken[1].translations == (Translation("French", "Bonjour."), Translation("German", "Guten Morgen."))
    assert spoken[2].translations == (Translation("Spanish", "Otra vez."),)


def test_typed_prompts_may_have_an_expected_answer_and_without_a_file_the_built_in_ones_are_asked(data: Path) -> None:
    assert read_evaluation_data(data, "English").typed == BUILT_IN_PROMPTS
    (data / "prompts.txt").write_text("Why?\n\n  2 + 2 =\t4 \n")
    assert read_evaluation_data(data, "English").typed == (TypedPrompt("Why?"), TypedPrompt("2 + 2 =", "4"))


def test_typed_prompts_alone_are_enough(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("Why?")
    assert read_evaluation_data(tmp_path, "English").spoken == ()


def remove_transcript(folder: Path) -> None:
    (folder / "b.txt").unlink()


def empty_transcript(folder: Path) -> None:
    (folder / "b.txt").write_text(" \n")


def make_transcript_a_folder(folder: Path) -> None:
    (folder / "b.txt").unlink()
    (folder / "b.txt").mkdir()


def write_binary_transcript(folder: Path) -> None:
    (folder / "b.txt").write_bytes(bytes(range(256)))


def write_zeros_as_transcript(folder: Path) -> None:
    (folder / "b.txt").write_bytes(bytes(100))


def use_unknown_code(folder: Path) -> None:
    (folder / "b.de.txt").rename(folder / "b.qq.txt")


def use_a_word_as_code(folder: Path) -> None:
    (folder / "b.de.txt").rename(folder / "b.notes.txt")


def empty_translation(folder: Path) -> None:
    (folder / "b.de.txt").write_text("")


def translate_into_the_spoken_language(folder: Path) -> None:
    (folder / "b.de.txt").rename(folder / "b.en.txt")


def lose_the_sound(folder: Path) -> None:
    (folder / "b.wav").unlink()


def empty_prompts(folder: Path) -> None:
    (folder / "prompts.txt").write_text("\n\n")


def write_binary_prompts(folder: Path) -> None:
    (folder / "prompts.txt").write_bytes(b"\xff\xfe\x00")


def expect_an_answer_to_nothing(folder: Path) -> None:
    (folder / "prompts.txt").write_text("Why?\n\tBecause.")


def expect_no_answer_behind_a_tab(folder: Path) -> None:
    (folder / "prompts.txt").write_text("Why?\tBecause.\tReally?")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove_transcript, ("b.txt", "missing")),
        (empty_transcript, ("b.txt", "empty")),
        (make_transcript_a_folder, ("b.txt", "cannot be read")),
        (write_binary_transcript, ("b.txt", "UTF-8")),
        (write_zeros_as_transcript, ("b.txt", "UTF-8")),
        (use_unknown_code, ("b.qq.txt", "'qq'", "language code")),
        (use_a_word_as_code, ("b.notes.txt", "'notes'", "language code")),
        (empty_translation, ("b.de.txt", "empty")),
        (translate_into_the_spoken_language, ("b.en.txt", "English", "--language")),
        (lose_the_sound, ("b.FR.txt", "belongs to no sound")),
        (empty_prompts, ("prompts.txt", "empty")),
        (write_binary_prompts, ("prompts.txt", "UTF-8")),
        (expect_an_answer_to_nothing, ("prompts.txt", "line 2")),
        (expect_no_answer_behind_a_tab, ("prompts.txt", "line 1")),
    ],
)
def test_a_damaged_folder_is_refused(data: Path, damage: Callable[[Path], None], words: tuple[str, ...]) -> None:
    damage(data)
    with refused(DataError, *words):
        read_evaluation_data(data, "English")


def test_what_is_no_data_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with refused(DataError, "empty", "no sound files"):
        read_evaluation_data(tmp_path / "empty", "English")
    with refused(DataError, "not a folder"):
        read_evaluation_data(tmp_path / "nowhere", "English")


def test_wrong_data_is_refused_before_the_conversion(tmp_path: Path) -> None:
    command = (CONVERT, TINY, tmp_path / "package", "--verify", "--data", tmp_path / "nowhere")
    assert_refused(run_command(*command), "nowhere")
    assert not (tmp_path / "package").exists()
