"""Images on the command line and over HTTP; what cannot be seen is refused in one sentence."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
from commands import CABOCHON, assert_refused, run_command
from conftest import TINY
from random_checkpoint import RandomWeights, small_config, write_random_checkpoint
from refusals import refused
from seeing_reference import let_template_show_videos
from served import Served

import cabochon
from cabochon.image import MAX_PIXELS
from cabochon.server import ServerSettings
from cabochon.sight import MAX_KEPT_TOKENS
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.recipes import RECIPES

QUESTION = "What is this?"
GREEDY = cabochon.SamplingSettings()
ASKED = ("--greedy", "--max-tokens", "8")


def png(rows: int, columns: int, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


CAT, DOG = png(60, 80), png(40, 40, 1)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that sees, whose template shows videos."""
    checkpoint = tmp_path_factory.mktemp("checkpoints") / "seeing"
    write_random_checkpoint(checkpoint, small_config(max_position_embeddings=4096), RandomWeights())
    let_template_show_videos(checkpoint)
    folder = tmp_path_factory.mktemp("packages") / "seeing"
    return convert_checkpoint(checkpoint, folder, ConversionSettings(RECIPES["float"], context_length=2048)).folder


@pytest.fixture(scope="module")
def model(package: Path) -> cabochon.Model:
    return cabochon.load(package)


@pytest.fixture(scope="module")
def served(model: cabochon.Model) -> Iterator[Served]:
    with Served(model, ServerSettings("seeing", max_tokens=8)) as server:
        yield server


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    (tmp_path / "cat.png").write_bytes(CAT)
    return tmp_path / "cat.png"


def ask(model: cabochon.Model, *images: bytes, **settings: int) -> cabochon.Answer:
    message = cabochon.Message("user", QUESTION, images=images)
    answer = model.chat([message], GREEDY, 8, sight=cabochon.SightSettings(**settings))
    answer.finish()
    return answer


def test_a_question_about_images_is_answered_like_from_python(
    package: Path, model: cabochon.Model, cat: Path, tmp_path: Path
) -> None:
    (tmp_path / "dog.png").write_bytes(DOG)
    images = ("--image", cat, "--image", tmp_path / "dog.png", "--image-tokens", "70")
    result = run_command(CABOCHON, "chat", package, QUESTION, *images, *ASKED)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ask(model, CAT, DOG, image_tokens=70).text + "\n"
    assert result.stdout != ask(model, DOG, CAT, image_tokens=70).text + "\n"


def test_a_question_about_a_video_is_answered_like_from_python(
    package: Path, model: cabochon.Model, cat: Path, tmp_path: Path
) -> None:
    (tmp_path / "dog.png").write_bytes(DOG)
    result = run_command(CABOCHON, "chat", package, QUESTION, "--video", cat.parent, *ASKED)
    assert result.returncode == 0, result.stderr
    message = cabochon.Message("user", QUESTION, videos=[[CAT, DOG]])
    assert result.stdout == model.chat([message], GREEDY, 8).finish() + "\n"


def test_what_cannot_be_seen_is_refused_by_the_command(
    package: Path, random_package: Path, cat: Path, tmp_path: Path
) -> None:
    missing, text = tmp_path / "missing.png", tmp_path / "notes.txt"
    text.write_text("no image")
    for options, words in (
        (("--image", missing), "does not exist"),
        (("--image", text), "not an image"),
        (("--image", cat, "--image-tokens", "100"), "70, 140, 280, 560, 1120"),
        (("--video", text), "cannot be read as a video"),
        (("--image", cat, "--image", cat, "--image-tokens", "1120"), "2048"),
    ):
        assert_refused(run_command(CABOCHON, "chat", package, QUESTION, *options, *ASKED), words)
    # Its template is that of models/tiny, which knows no videos.
    assert_refused(run_command(CABOCHON, "chat", random_package, QUESTION, "--video", tmp_path), "chat template")


def test_a_package_that_does_not_see_says_so(tmp_path: Path, cat: Path) -> None:
    folder = convert_checkpoint(TINY, tmp_path / "package", ConversionSettings(RECIPES["int4"])).folder
    assert_refused(run_command(CABOCHON, "chat", folder, QUESTION, "--image", cat), "no vision encoder")
    with refused(cabochon.RequestError, "no vision encoder"):
        cabochon.load(folder).chat([cabochon.Message("user", QUESTION, videos=[[CAT]])])


def test_a_prompt_that_does_not_fit_is_refused_before_it_is_looked_at(
    model: cabochon.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(model._sight), "encode", lambda *_: pytest.fail("it was looked at"))
    with refused(cabochon.RequestError, "of 2048 positions"):
        ask(model, CAT, DOG, image_tokens=1120)


@pytest.mark.parametrize("images", [(), (CAT,)], ids=["no image", "one image"])
def test_a_text_cannot_pretend_to_hold_an_image(model: cabochon.Model, images: tuple[bytes, ...]) -> None:
    with refused(cabochon.RequestError, "places for images"):
        model.chat([cabochon.Message("user", "Look: <|image|>", images=images)])


def test_images_of_a_message_are_a_list() -> None:
    with refused(cabochon.RequestError, "images of a message are a str", "list"):
        cabochon.Message("user", QUESTION, images="cat.png")


def test_an_image_is_encoded_once_while_a_conversation_goes_on(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, encoded = cabochon.load(package), []
    opened = cabochon.pipeline.open_vision_encoder

    def open_counted(*arguments: Any) -> Any:
        encoder = opened(*arguments)

        class Counted:
            def encode(self, patches: np.ndarray) -> np.ndarray:
                encoded.append(patches.shape)
                return encoder.encode(patches)

        return Counted()

    monkeypatch.setattr(cabochon.pipeline, "open_vision_encoder", open_counted)
    first = ask(model, CAT)
    messages = [cabochon.Message("user", QUESTION, images=[CAT]), cabochon.Message("assistant", first.text)]
    model.chat([*messages, cabochon.Message("user", "Really?", images=[DOG])], GREEDY, 8).finish()
    assert len(encoded) == 2
    ask(model, CAT, image_tokens=70)
    assert len(encoded) == 3
    assert ask(model, CAT).text == first.text
    assert len(encoded) == 3


def test_what_is_held_of_a_prompt_serves_the_same_image_and_no_other_of_its_size(
    package: Path, model: cabochon.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, run = png(60, 80, 7), []
    prefill = cabochon.pipeline.prefill

    def count(decoder: Any, prompt: Any, position: int) -> Any:
        run.append(len(prompt))
        return prefill(decoder, prompt, position)

    expected = [ask(cabochon.load(package), *images).text for images in ((CAT,), (other,), (CAT, other))]
    assert expected[0] != expected[1]
    monkeypatch.setattr(cabochon.pipeline, "prefill", count)
    found = [ask(model, *images) for images in ((CAT,), (other,), (other,), (CAT, other))]
    assert [answer.text for answer in found] == [expected[0], expected[1], expected[1], expected[2]]
    tokens = cabochon.image.read_image(CAT, model._sight.vision, 280).tokens  # type: ignore[union-attr]
    assert run[1] > tokens
    assert run[2] == 1
    assert run[3] > 2 * tokens


def test_a_conversation_holds_its_images(package: Path, model: cabochon.Model) -> None:
    conversation = model.start_conversation()
    first = conversation.ask(QUESTION, GREEDY, 8, images=[CAT]).finish()
    second = conversation.ask("Really?", GREEDY, 8).finish()
    messages = [cabochon.Message("user", QUESTION, images=[CAT]), cabochon.Message("assistant", first)]
    fresh = cabochon.load(package).chat([*messages, cabochon.Message("user", "Really?")], GREEDY, 8)
    assert second == fresh.finish()


def test_images_that_were_seen_long_ago_are_forgotten(model: cabochon.Model) -> None:
    sight = model._sight
    assert sight is not None
    for seed in range(12):
        sight.encode([cabochon.image.read_image(png(60, 80, seed), sight.vision, 1120)])
    assert 0 < sum(each.tokens for each in sight._kept.values()) <= MAX_KEPT_TOKENS


def test_a_text_alone_needs_no_vision_encoder(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cabochon.pipeline, "open_vision_encoder", lambda *_: pytest.fail("it was loaded"))
    cabochon.load(package).chat([cabochon.Message("user", QUESTION)], GREEDY, 2).finish()


def data_uri(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def chat_body(*urls: str, **more: object) -> dict[str, Any]:
    parts: list[dict[str, object]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}],
        "temperature": 0,
        **more,
    }


def test_the_client_of_openai_asks_about_an_image(served: Served, model: cabochon.Model) -> None:
    body = chat_body(data_uri(CAT), data_uri(DOG), image_tokens=70)
    extra = {"image_tokens": body.pop("image_tokens")}
    answer = served.client().chat.completions.create(model="seeing", extra_body=extra, **body)
    expected = ask(model, CAT, DOG, image_tokens=70)
    assert answer.choices[0].message.content == expected.text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == expected.statistics.prompt_positions


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://example.com/cat.png", "fetches nothing"),
        ("http://127.0.0.1:1/cat.png", "fetches nothing"),
        ("file:///etc/passwd", "fetches nothing"),
        ("/etc/passwd", "fetches nothing"),
        ("", "fetches nothing"),
        ("data:image/png,abc", "base64"),
        ("data:image/png;base64,?", "not base64"),
        ("data:image/png;base64", "base64"),
        ("data:image/png;base64,", "0 bytes"),
        (data_uri(b"no image"), "not an image"),
        (data_uri(CAT[: len(CAT) // 2]), "cannot be read as an image"),
    ],
)
def test_an_image_that_is_not_in_the_request_is_refused(served: Served, url: str, words: str) -> None:
    assert_told(served, chat_body(url), words)


def test_images_are_limited_in_pixels_and_number(served: Served) -> None:
    file = io.BytesIO()
    PIL.Image.new("1", (1 << 14, (1 << 12) + 1)).save(file, "PNG")
    assert len(file.getvalue()) < 20_000
    assert_told(served, chat_body(data_uri(file.getvalue())), str(MAX_PIXELS))
    assert_told(served, chat_body(*[data_uri(DOG)] * 33), "33 images")
    assert_told(served, chat_body(data_uri(DOG), image_tokens=71), "71 tokens")


def assert_told(served: Served, body: dict[str, Any], words: str) -> None:
    answer = httpx.post(f"{served.address}/v1/chat/completions", json=body)
    assert answer.status_code == 400, answer.text
    message = answer.json()["error"]["message"]
    assert words in message
    assert message.endswith(".")
    assert len(message.splitlines()) == 1
    assert os.sep + "tmp" not in message
