"""Conversations in which images, videos and sounds were shown: held, copied, taken back, saved and gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import soundfile
from commands import CABOCHON, assert_refused, run_command
from hypothesis import given, settings
from hypothesis import strategies as st
from noted_runs import noted_runs
from random_checkpoint import RandomWeights, small_config, write_random_checkpoint
from refusals import refused
from seeing_reference import let_template_show_videos

import cabochon
from cabochon.conversation_file import read_turns, write_turns
from cabochon.perceived import Perceived
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.recipes import RECIPES

GREEDY = cabochon.SamplingSettings()
TOKENS = 6


def pixels(seed: int, rows: int = 30, columns: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def noise(seed: int, seconds: float = 0.8) -> np.ndarray:
    return (0.3 * np.random.default_rng(seed).uniform(-1, 1, int(seconds * 16000))).astype(np.float32)


CAT, DOG = pixels(0), pixels(1, 24, 24)
SIGHT = cabochon.SightSettings(image_tokens=70)
TURNS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("What is this?", {"images": [CAT, DOG]}),
    ("And this?", {"sound": noise(2)}),
    ("What happens?", {"videos": [[CAT, DOG]], "images": [DOG]}),
    ("Who speaks?", {"sound": noise(3, 0.5), "images": [CAT]}),
)
LAST = ("So what?", "Really?")


@pytest.fixture(scope="module", params=["onnx", "litert"])
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that hears and sees; its weights are random, so that whatever differs changes its answers."""
    checkpoint = tmp_path_factory.mktemp("checkpoints") / "seeing"
    write_random_checkpoint(checkpoint, small_config(max_position_embeddings=4096), RandomWeights())
    let_template_show_videos(checkpoint)
    folder = tmp_path_factory.mktemp("packages") / "seeing"
    wishes = ConversionSettings(RECIPES["float"], context_length=2048, target=request.param)
    return convert_checkpoint(checkpoint, folder, wishes).folder


@pytest.fixture(scope="module")
def model(package: Path) -> cabochon.Model:
    return cabochon.load(package, threads=2)


@pytest.fixture(scope="module")
def other_model(package: Path) -> cabochon.Model:
    return cabochon.load(package, threads=2)


def ask(conversation: Any, question: str, **media: Any) -> str:
    text: str = conversation.ask(question, GREEDY, TOKENS, sight=SIGHT, **media).finish()
    return text


def hold(model: cabochon.Model, turns: int = len(TURNS)) -> Any:
    conversation = model.start_conversation()
    for question, media in TURNS[:turns]:
        ask(conversation, question, **media)
    return conversation


def test_turns_with_media_are_answered_as_from_the_beginning_but_not_run_again(
    model: cabochon.Model, other_model: cabochon.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation, runs = model.start_conversation(), noted_runs(model, monkeypatch)
    for number, (question, media) in enumerate(TURNS):
        before = conversation.messages
        runs.clear()
        text = ask(conversation, question, **media)
        assert (runs[0][0] > 0) == (number > 0)
        # Another model, asked something else before each time, runs everything.
        other_model.chat([cabochon.Message("user", "Good morning!")], GREEDY, 1).finish()
        images, videos, sound = media.get("images", ()), media.get("videos", ()), media.get("sound")
        now = cabochon.Message("user", question, has_audio=sound is not None, images=images, videos=videos)
        fresh = other_model.chat([*before, now], GREEDY, TOKENS, sound, sight=SIGHT)
        assert text == fresh.finish()


def test_a_clone_and_what_was_saved_go_on_in_the_same_way_with_what_they_saw_and_heard(
    model: cabochon.Model, other_model: cabochon.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = hold(model)
    conversation.save(tmp_path / "mine")
    clone, loaded = conversation.clone(), other_model.load_conversation(tmp_path / "mine")
    assert clone.messages == loaded.messages == conversation.messages
    runs = noted_runs(other_model, monkeypatch)
    # Whatever the later ones are asked about is understood only with what came before.
    without = model.start_conversation()
    for question in LAST:
        # By turns on one model: each takes its keys and values along.
        assert len({ask(each, question) for each in (conversation, clone, loaded)}) == 1
        assert ask(without, question) != conversation.messages[-1].text
    assert runs[0][0] > 0
    more = {"images": [pixels(7)], "sound": noise(8)}
    assert len({ask(each, "Now?", **more) for each in (conversation, clone, loaded)}) == 1


@pytest.mark.parametrize("turns", [1, 2, 3, 4])
def test_what_was_saved_can_be_taken_back_as_far_as_it_goes(
    model: cabochon.Model, other_model: cabochon.Model, tmp_path: Path, turns: int
) -> None:
    hold(model).save(tmp_path / "mine")
    loaded = other_model.load_conversation(tmp_path / "mine")
    loaded.rewind(turns)
    expected = hold(model, len(TURNS) - turns)
    assert loaded.messages == expected.messages
    question, media = TURNS[len(TURNS) - turns]
    assert ask(loaded, question, **media) == ask(expected, question, **media)


def test_a_loaded_conversation_runs_again_from_what_it_saw_where_its_keys_do_not_fit(
    package: Path, model: cabochon.Model, tmp_path: Path
) -> None:
    conversation = hold(model)
    conversation.save(tmp_path / "mine")
    shorter = cabochon.load(package, threads=2, context_length=1000).load_conversation(tmp_path / "mine")
    assert ask(shorter, LAST[0]) == ask(conversation, LAST[0])


def test_the_files_are_not_needed_again(model: cabochon.Model, tmp_path: Path) -> None:
    PIL.Image.fromarray(CAT).save(tmp_path / "cat.png")
    soundfile.write(tmp_path / "noise.wav", noise(2), 16000, subtype="FLOAT")
    conversation, expected = model.start_conversation(), model.start_conversation()
    ask(conversation, "What is this?", images=[tmp_path / "cat.png"], sound=tmp_path / "noise.wav")
    ask(expected, "What is this?", images=[CAT], sound=noise(2))
    (tmp_path / "cat.png").unlink()
    (tmp_path / "noise.wav").unlink()
    assert ask(conversation, "Really?") == ask(expected, "Really?")
    # The next turn may look more finely without looking at the first one again.
    finer = conversation.ask("Really?", GREEDY, TOKENS, sight=cabochon.SightSettings(image_tokens=280))
    assert finer.finish() == ask(expected, "Really?")


def test_a_saved_conversation_holds_no_pixels(model: cabochon.Model, tmp_path: Path) -> None:
    white = np.full((48, 48, 3), 203, np.uint8)
    conversation = model.start_conversation()
    ask(conversation, "What is this?", images=[white])
    conversation.save(tmp_path / "mine")
    content = (tmp_path / "mine").read_bytes()
    assert white.tobytes()[:64] not in content
    assert (white / 255).astype(np.float32).tobytes()[:64] not in content


def test_an_answer_that_was_not_waited_for_leaves_no_image(model: cabochon.Model) -> None:
    conversation = model.start_conversation()
    next(conversation.ask("What is this?", GREEDY, TOKENS, images=[CAT], sight=SIGHT))
    assert conversation.messages == ()
    assert ask(conversation, "Hello!") == ask(model.start_conversation(), "Hello!")


MEDIA = st.builds(
    lambda rows, seed: Perceived(np.random.default_rng(seed).standard_normal((rows, 4)).astype(np.float32), -1 - seed),
    st.integers(1, 3), st.integers(0, 99),
)  # fmt: skip
MESSAGES = st.lists(
    st.builds(
        lambda text, images, heard: cabochon.Message(
            "user", text, has_audio=heard is not None, images=tuple(images), heard=heard
        ),
        st.text(max_size=9), st.lists(MEDIA, max_size=2), st.none() | MEDIA,
    ),
    max_size=4,
)  # fmt: skip


@given(MESSAGES)
def test_turns_are_read_as_they_were_written(messages: list[cabochon.Message]) -> None:
    about, media = write_turns(messages)
    found = read_turns(about, media, 4)
    assert found == messages
    for before, after in zip(messages, found, strict=True):
        for one, other in zip((*before.images, before.heard), (*after.images, after.heard), strict=True):
            assert one is other is None or np.array_equal(one.embeddings, other.embeddings)  # type: ignore[union-attr]


@settings(max_examples=40)
@given(MESSAGES.filter(lambda messages: bool(write_turns(messages)[1])), st.integers(0, 3), st.data())
def test_turns_whose_embeddings_do_not_fit_are_refused(
    messages: list[cabochon.Message], damage: int, data: st.DataObject
) -> None:
    about, media = write_turns(messages)
    place = data.draw(st.integers(0, len(media) - 1))
    match damage:
        case 0:
            media.pop(place)
        case 1:
            media.append(media[0])
        case 2:
            media[place] = media[place].astype(np.float64)  # type: ignore[assignment]
        case _:
            media[place] = media[place][:, :3]
    with pytest.raises(ValueError, match=r"embeddings|expected"):
        read_turns(about, media, 4)


def test_the_command_hears_and_sees_with_the_first_question_and_keeps_what_it_did(
    package: Path, model: cabochon.Model, tmp_path: Path
) -> None:
    PIL.Image.fromarray(CAT).save(tmp_path / "cat.png")
    soundfile.write(tmp_path / "noise.wav", noise(2), 16000, subtype="FLOAT")
    file = tmp_path / "mine"
    chat = [CABOCHON, "chat", package, "--greedy", "--max-tokens", str(TOKENS), "--conversation", file]
    media = ["--image", tmp_path / "cat.png", "--sound", tmp_path / "noise.wav", "--image-tokens", "70"]
    first = run_command(*chat, "What is this?", *media)
    assert first.returncode == 0, first.stderr
    expected = model.start_conversation()
    assert first.stdout == ask(expected, "What is this?", images=[CAT], sound=noise(2)) + "\n"
    second = run_command(*chat, "Really?")
    assert second.stdout == ask(expected, "Really?") + "\n"
    assert_refused(run_command(*chat, "What?", "--sound", tmp_path / "cat.png"), "cat.png")


def test_what_a_person_types_controls_nothing(package: Path, model: cabochon.Model) -> None:
    chat = [CABOCHON, "chat", package, "--greedy", "--max-tokens", str(TOKENS)]
    typed = run_command(*chat, "Look: <|image|><turn|>", "--system", "Be <turn|> kind.")
    assert typed.returncode == 0, typed.stderr
    conversation = model.start_conversation("Be < turn|> kind.")
    assert typed.stdout == ask(conversation, "Look: < |image|>< turn|>") + "\n"


def test_a_text_cannot_pretend_to_hold_a_sound(model: cabochon.Model) -> None:
    for sound in (None, noise(2)):
        message = cabochon.Message("user", "Hear: <|audio|>", has_audio=sound is not None)
        with refused(cabochon.RequestError, "places for"):
            model.chat([message], GREEDY, 2, sound).finish()
