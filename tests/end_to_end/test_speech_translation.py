"""T3: the trained model translates held-out speech, through the Python API and through the installed wheel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import REPOSITORY, TINY
from demo_references import REFERENCES
from models.tiny.training.recognizer import Recognizer
from refusals import refused

import cabochon
from cabochon.prompt import translation_instruction
from cabochon_convert.processor import PROMPTS

DEMO_FILES = [reference["file"] for reference in REFERENCES]
"""The first is English."""


def translate(model: cabochon.Model, reference: dict[str, str]) -> cabochon.Translation:
    sound = TINY / "demo" / reference["file"]
    return model.translate(sound, source=reference["source"], target=reference["target"])


@pytest.fixture(scope="session")
def reference_answers() -> dict[str, str]:
    """What the checkpoint itself answers in transformers, by demo file."""
    recognizer = Recognizer(TINY)
    answers = {}
    for reference in REFERENCES:
        instruction = translation_instruction(PROMPTS, reference["source"], reference["target"])
        sound, _ = soundfile.read(TINY / "demo" / reference["file"], dtype="float32")
        (answers[reference["file"]],) = recognizer.answers([sound], instruction)
    return answers


def test_every_recipe_gives_the_answers_of_the_checkpoint_on_the_demo_sounds(
    tiny_package: Path, reference_answers: dict[str, str]
) -> None:
    model = cabochon.load(tiny_package)
    for reference in REFERENCES:
        assert translate(model, reference).finish() == reference_answers[reference["file"]]


def test_most_demo_lines_are_exactly_what_was_said_and_its_translation(tiny_package: Path) -> None:
    model = cabochon.load(tiny_package)
    exact = 0
    for reference in REFERENCES:
        answer = translate(model, reference)
        answer.finish()
        exact += answer.transcript == reference[reference["source"]]
        exact += answer.translation == reference[reference["target"]]
    assert exact >= 2 * len(REFERENCES) - 2


def test_text_comes_piece_by_piece_and_a_transcript_is_the_first_line_of_a_translation(tiny_package: Path) -> None:
    model = cabochon.load(tiny_package)
    sound = TINY / "demo" / DEMO_FILES[0]
    pieces = list(model.translate(sound, source="English", target="German"))
    assert len(pieces) > 3
    assert model.transcribe(sound, "English").finish() == "".join(pieces).split("\n")[0]


def test_a_waveform_is_heard_like_the_file_that_holds_it(tiny_package: Path) -> None:
    model = cabochon.load(tiny_package)
    sound = TINY / "demo" / DEMO_FILES[0]
    waveform, _ = soundfile.read(sound, dtype="float32")
    assert model.transcribe(np.asarray(waveform), "en").finish() == model.transcribe(sound, "en").finish()


def test_a_new_answer_ends_the_one_before_it_in_one_sentence(tiny_package: Path) -> None:
    model = cabochon.load(tiny_package)
    sound = TINY / "demo" / DEMO_FILES[0]
    first = model.transcribe(sound, "en")
    next(first)
    model.transcribe(sound, "en").finish()
    with pytest.raises(cabochon.RequestError, match="another answer"):
        first.finish()


def test_the_wheel_translates_a_sound_in_an_environment_without_torch(tiny_package: Path, tmp_path: Path) -> None:
    python = REPOSITORY / ".venv-runtime" / "bin" / "python"
    assert python.exists(), "run `make setup` first: it makes the environment without torch"
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=REPOSITORY, check=True
    )
    wheel = next(tmp_path.glob("cabochon-*.whl"))
    site = tmp_path / "site"
    install = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", site, wheel]
    subprocess.run(install, check=True)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(site), "XDG_CACHE_HOME": str(tmp_path)}
    absent = "import importlib.util as u; assert not any(u.find_spec(n) for n in ('torch', 'transformers', 'onnx'))"
    subprocess.run([python, "-c", absent], env=environment, check=True)
    command = [python, site / "bin" / "cabochon", "translate", tiny_package, TINY / "demo" / DEMO_FILES[0]]
    outcome = subprocess.run(
        [*command, "--source", "English", "--target", "German", "--json"],
        env=environment, cwd=tmp_path, check=True, capture_output=True, text=True,
    )  # fmt: skip
    model = cabochon.load(tiny_package)
    answer = model.translate(TINY / "demo" / DEMO_FILES[0], source="English", target="German")
    answer.finish()
    found = json.loads(outcome.stdout)
    assert (found["transcript"], found["translation"]) == (answer.transcript, answer.translation)


def test_importing_cabochon_needs_numpy_only() -> None:
    code = (
        "import sys; before = set(sys.modules); import cabochon; "
        "roots = {name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names); "
        "print(sorted(root for root in roots if not root.startswith('_')))"
    )
    outcome = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert outcome.stdout.strip() == "['cabochon', 'numpy']"


def test_answers_asked_for_from_several_threads_are_right_or_refused(tiny_package: Path) -> None:
    model = cabochon.load(tiny_package)
    sounds = [TINY / "demo" / file for file in DEMO_FILES]
    expected = [model.transcribe(sound, "en").finish() for sound in sounds]

    def transcribe(index: int) -> bool:
        try:
            return model.transcribe(sounds[index % len(sounds)], "en").finish() == expected[index % len(sounds)]
        except cabochon.RequestError:
            return True

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(transcribe, range(40)))


@pytest.mark.parametrize(
    "sound",
    [
        np.zeros(16_000, np.int16),
        np.zeros((16_000, 2), np.float32),
        np.full(16_000, 1.5, np.float32),
        np.full(16_000, np.nan, np.float32),
        np.zeros(16_000 * 31, np.float32),
        np.zeros(100, np.float32),
        None,
        b"RIFF",
    ],
    ids=["integers", "stereo", "too loud", "not a number", "31 s", "6 ms", "nothing", "bytes"],
)
def test_a_waveform_that_is_no_clip_is_refused_in_one_sentence(random_package: Path, sound: object) -> None:
    with refused(cabochon.AudioError):
        cabochon.load(random_package).transcribe(sound, "en")  # type: ignore[arg-type]


@pytest.mark.parametrize("max_tokens", [0, -3, "5"])
def test_an_answer_of_no_length_is_refused(random_package: Path, max_tokens: int) -> None:
    with refused(cabochon.RequestError, "positive"):
        cabochon.load(random_package).chat([cabochon.Message("user", "hello")], max_tokens=max_tokens)


def test_a_translation_into_the_same_language_is_refused(random_package: Path) -> None:
    with refused(cabochon.RequestError, "German"):
        cabochon.load(random_package).translate(TINY / "demo" / DEMO_FILES[0], source="de", target="german")


def test_an_unknown_role_and_a_sound_in_a_chat_are_refused(random_package: Path) -> None:
    with refused(cabochon.RequestError, "tool"):
        cabochon.Message("tool", "hello")
    with refused(cabochon.RequestError, "1 messages have a sound and 0 was given"):
        cabochon.load(random_package).chat([cabochon.Message("user", "hello", has_audio=True)])


def test_an_answer_that_failed_does_not_look_finished_later(tiny_package: Path) -> None:
    model = cabochon.load(tiny_package)
    first = model.transcribe(TINY / "demo" / DEMO_FILES[0], "en")
    next(first)
    model.transcribe(TINY / "demo" / DEMO_FILES[0], "en").finish()
    for _ in range(2):
        with pytest.raises(cabochon.RequestError):
            first.finish()
