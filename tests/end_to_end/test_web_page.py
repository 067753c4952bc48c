"""The page of `cabochon serve`, used in a real browser by mouse, finger and keys; Chromium plays a file as microphone.

The tests need Chromium on PATH; `make test` installs Debian's where it can.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import jiwer
import pytest
import soundfile
from browser import Browser, Page, run_browser
from conftest import REPOSITORY, TINY, convert_tiny
from demo_references import BY_LANGUAGE as REFERENCES
from PIL import Image
from served import Served, wait_until

import cabochon
from cabochon.languages import LANGUAGE_NAMES
from cabochon.server import ServerSettings

ENGLISH, GERMAN = (TINY / "demo" / REFERENCES[source]["file"] for source in ("en", "de"))
SETTINGS = ServerSettings("tiny", longest_queue=40, max_bytes=3_000_000, max_tokens=64)
KEY = "secret"
SAID_SAMPLES = len(soundfile.read(ENGLISH)[0])
"""At 16 kHz."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> cabochon.Model:
    return cabochon.load(convert_tiny("int4-mixed", tmp_path_factory))


@pytest.fixture(scope="module")
def served(model: cabochon.Model) -> Iterator[Served]:
    with Served(model, SETTINGS) as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """It hears an English sentence, from its beginning, whenever the microphone is opened."""
    options = (
        "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={ENGLISH}%noloop", "--host-resolver-rules=MAP *.test 127.0.0.1",
    )  # fmt: skip
    with run_browser(tmp_path_factory.mktemp("browser") / "profile", *options) as running:
        yield running


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    with browser.page(served.address) as opened:
        yield opened


def choose_languages(page: Page, spoken: str, target: str = "") -> None:
    for name, code in (("spoken", spoken), ("target", target)):
        page.evaluate(
            f"{{ const select = document.getElementById('{name}'); select.value = '{code}';"
            " select.dispatchEvent(new Event('change')); }"
        )


def shown(page: Page, part: str) -> str:
    """What stands in a part of the newest answer."""
    text: str = page.evaluate(f"document.querySelector('.answer .{part}').textContent")
    return text


def wait_for_answer(page: Page, count: int = 1) -> str:
    """The text of the newest one of so many answers."""
    page.wait(f"document.querySelectorAll('.answer').length === {count}")
    page.wait("document.querySelector('.answer .text').getAttribute('aria-busy') === 'false'")
    return shown(page, "text")


def problem(page: Page) -> str:
    """The one sentence that the newest answer shows instead of a text."""
    wait_for_answer(page)
    assert page.evaluate("!document.querySelector('.answer .problem').hidden")
    told = shown(page, "problem")
    assert told[0].isupper()
    assert told.endswith(".")
    return told


def listen(page: Page) -> None:
    """Wait until as much is heard as the sentence is long."""
    page.wait("document.getElementById('talk').dataset.state === 'listening'")
    page.wait(f"hold.count > {SAID_SAMPLES}")


def assert_heard(found: str, language: str) -> None:
    # Chromium begins to play a few milliseconds sooner or later than the page begins to hear, and silence follows,
    # which so small a model was not trained with: of sixty transcripts all were exact, of translations not all.
    assert jiwer.wer(REFERENCES["en"][language], found) < 0.34, found


def requests(page: Page) -> list[str]:
    """Method and address of whatever the page asked for."""
    sent = [event["params"]["request"] for event in page.events if event["method"] == "Network.requestWillBeSent"]
    return [f"{request['method']} {request['url']}" for request in sent]


def test_what_is_said_while_the_button_is_held_is_translated(page: Page) -> None:
    choose_languages(page, "en", "de")
    x, y = page.centre("#talk")
    page.mouse("mousePressed", x, y)
    listen(page)
    assert page.evaluate("document.getElementById('talk').innerText.trim()").startswith("Listening 0:0")
    page.mouse("mouseReleased", x, y)
    assert_heard(wait_for_answer(page), "de")
    assert_heard(shown(page, "transcript"), "en")
    assert shown(page, "about").endswith("s, English → German")
    assert page.evaluate("document.querySelector('.answer .text').lang") == "de"
    assert page.evaluate("document.getElementById('talk').innerText.trim()") == "Hold to talk"


@pytest.mark.parametrize(("key", "code", "text"), [(" ", 32, " "), ("Enter", 13, "\r")])
def test_a_key_holds_the_button_too(page: Page, key: str, code: int, text: str) -> None:
    choose_languages(page, "en")
    page.evaluate("document.getElementById('talk').focus()")
    page.key("keyDown", key, code, text)
    listen(page)
    page.key("keyDown", key, code, text)  # a key that is held repeats itself
    page.key("keyUp", key, code)
    assert_heard(wait_for_answer(page), "en")


def test_a_tap_before_and_after_is_enough(page: Page) -> None:
    choose_languages(page, "en")
    page.click("#talk")
    listen(page)
    page.click("#talk")
    assert_heard(wait_for_answer(page), "en")


def test_a_finger_holds_the_button_until_something_takes_it_away(page: Page) -> None:
    choose_languages(page, "en")
    page.show_as(360, 800, "light")
    x, y = page.centre("#talk")
    page.call("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    listen(page)
    page.call("Input.dispatchTouchEvent", {"type": "touchCancel", "touchPoints": []})
    assert_heard(wait_for_answer(page), "en")


def test_a_window_that_is_left_hears_no_more(page: Page) -> None:
    choose_languages(page, "en")
    page.mouse("mousePressed", *page.centre("#talk"))
    listen(page)
    page.evaluate("window.recorded = hold; dispatchEvent(new Event('blur'))")
    assert_heard(wait_for_answer(page), "en")
    assert page.evaluate("recorded.stream.getTracks().every((track) => track.readyState === 'ended')")


def test_escape_throws_away_what_was_said(page: Page) -> None:
    page.mouse("mousePressed", *page.centre("#talk"))
    page.wait("document.getElementById('talk').dataset.state === 'listening'")
    page.evaluate("window.recorded = hold")
    page.key("keyDown", "Escape", 27)
    assert page.evaluate("document.getElementById('talk').innerText.trim()") == "Hold to talk"
    assert page.evaluate("recorded.stream.getTracks().every((track) => track.readyState === 'ended')")
    time.sleep(0.5)
    assert page.evaluate("document.querySelectorAll('.answer').length") == 0
    assert not [each for each in requests(page) if each.startswith("POST")]


def test_who_lets_go_while_the_microphone_is_being_allowed_is_told_to_speak_now(
    browser: Browser, served: Served
) -> None:
    slow = """const media = navigator.mediaDevices, open = media.getUserMedia.bind(media);
        media.getUserMedia = (wish) => new Promise((allow) => { window.allow = () => allow(open(wish)); });"""
    with browser.page(served.address, slow) as page:
        x, y = page.centre("#talk")
        page.mouse("mousePressed", x, y)
        page.wait("document.getElementById('talk').dataset.state === 'opening'")
        time.sleep(0.4)
        page.mouse("mouseReleased", x, y)
        page.evaluate("allow()")
        page.wait("document.getElementById('hint').textContent.includes('The microphone is ready')")
        assert page.evaluate("document.querySelectorAll('.answer').length") == 0


def test_a_microphone_that_is_refused_is_told(browser: Browser, served: Served) -> None:
    for name, words in (("NotAllowedError", "not allowed"), ("NotFoundError", "No microphone was found")):
        refuse = f"navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('', '{name}'); }};"
        with browser.page(served.address, refuse) as page:
            page.click("#talk")
            page.wait(f"document.getElementById('hint').textContent.includes('{words}')")


def test_files_are_chosen_and_dropped(page: Page) -> None:
    choose_languages(page, "de", "en")
    page.choose_file("#chosen", GERMAN)
    assert wait_for_answer(page) == REFERENCES["de"]["en"]
    assert shown(page, "transcript") == REFERENCES["de"]["de"]
    choose_languages(page, "en")
    page.drop_file(ENGLISH)
    assert wait_for_answer(page, 2) == REFERENCES["en"]["en"]
    assert shown(page, "about") == f"{ENGLISH.name}, English"
    assert page.evaluate("document.querySelector('.answer .transcript').hidden")


def test_several_files_are_answered_in_turn(page: Page) -> None:
    choose_languages(page, "en")
    page.choose_file("#chosen", *[ENGLISH] * 3)
    page.wait("document.querySelectorAll('.answer .text[aria-busy=false]').length === 3")
    texts = page.evaluate("[...document.querySelectorAll('.answer .text')].map((text) => text.textContent)")
    assert texts == [REFERENCES["en"]["en"]] * 3


def test_text_appears_before_the_answer_has_ended(page: Page, long_sound: Path) -> None:
    choose_languages(page, "en")
    page.choose_file("#chosen", long_sound)
    first = page.wait("document.querySelector('.answer .text[aria-busy=true]')?.textContent")
    text = wait_for_answer(page)
    assert text.startswith(first.strip())
    assert len(first) < len(text) / 2
    assert text.count(REFERENCES["en"]["en"]) >= 9


def test_who_cancels_frees_the_server_and_may_try_again(page: Page, long_sound: Path) -> None:
    choose_languages(page, "en")
    page.choose_file("#chosen", long_sound)
    page.wait("document.querySelector('.answer .text[aria-busy=true]')?.textContent")
    page.click(".answer .cancel")
    assert problem(page) == "Cancelled."
    assert shown(page, "text").count(REFERENCES["en"]["en"]) < 9
    wait_until(lambda: page.evaluate("fetch('healthz').then((answer) => answer.json())")["requests"] == 0)
    page.click(".answer .again")
    assert wait_for_answer(page).count(REFERENCES["en"]["en"]) >= 9
    assert page.evaluate("document.querySelector('.answer .problem').hidden")


def test_an_answer_can_be_copied(page: Page) -> None:
    page.call("Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]})
    page.call("Page.bringToFront", {})
    choose_languages(page, "en")
    page.choose_file("#chosen", ENGLISH)
    wait_for_answer(page)
    page.click(".answer .copy")
    page.wait("document.querySelector('.answer .copy').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == REFERENCES["en"]["en"]


def test_the_key_is_asked_for_until_it_is_right_and_forgotten_with_the_tab(
    browser: Browser, model: cabochon.Model
) -> None:
    with Served(model, replace(SETTINGS, api_key=KEY)) as served:
        with browser.page(served.address) as page:
            choose_languages(page, "en")
            page.choose_file("#chosen", ENGLISH)
            for key in ("wrong", KEY):
                page.wait("document.getElementById('key-dialog').open")
                told = page.evaluate("document.getElementById('key-reason').textContent")
                assert told == "The API key is missing or wrong."
                assert page.evaluate("document.activeElement.id") == "key"
                assert page.evaluate("document.activeElement.type") == "password"
                assert page.evaluate("document.activeElement.value") == ""
                page.call("Input.insertText", {"text": key})
                page.key("keyDown", "Enter", 13, "\r")
                page.key("keyUp", "Enter", 13)
            assert wait_for_answer(page) == REFERENCES["en"]["en"]
            assert KEY not in page.evaluate("JSON.stringify(localStorage) + document.cookie + location.href")
            page.choose_file("#chosen", ENGLISH)
            assert wait_for_answer(page, 2) == REFERENCES["en"]["en"]
        with browser.page(served.address) as page:
            page.choose_file("#chosen", ENGLISH)
            page.wait("document.getElementById('key-dialog').open")
            page.click("#key-cancel")
            assert problem(page) == "The API key is missing or wrong."


def test_what_the_server_refuses_is_told_in_its_sentence(
    browser: Browser, model: cabochon.Model, long_sound: Path, tmp_path: Path
) -> None:
    noise = tmp_path / "noise.wav"
    noise.write_bytes(b"not a sound")
    full = tmp_path / "full.wav"  # the form around it makes it too large
    full.write_bytes(bytes(SETTINGS.max_bytes))
    too_large = tmp_path / "large.wav"
    too_large.write_bytes(bytes(SETTINGS.max_bytes + 1))
    cases = (
        (SETTINGS, noise, "cannot be read as sound"),
        (SETTINGS, full, "The request has more than 3000000 bytes."),
        (SETTINGS, too_large, "This sound has 3.0 MB, the server takes 3.0 MB: compress it"),
        (replace(SETTINGS, longest_queue=0), ENGLISH, "Too many requests wait: try again later. Wait 5 s."),
        (replace(SETTINGS, time_limit=0.3), long_sound, "The answer took longer than the server allows."),
    )
    for settings, sound, words in cases:
        with Served(model, settings) as served, browser.page(served.address) as page:
            choose_languages(page, "en")
            page.choose_file("#chosen", sound)
            assert words in problem(page)


def test_a_server_that_is_gone_is_told(browser: Browser, model: cabochon.Model) -> None:
    with ExitStack() as tabs:
        with Served(model, SETTINGS) as served:
            page = tabs.enter_context(browser.page(served.address))
        page.choose_file("#chosen", ENGLISH)
        assert problem(page) == "The server cannot be reached: see whether it is still running."


def answer_by_bytes(stream: str) -> str:
    """A script that answers every request with this text, byte by byte."""
    content = json.dumps(list(stream.encode()))
    return (
        "window.fetch = async () => new Response(new ReadableStream({ async start(out) {"
        f"for (const byte of {content}) {{ out.enqueue(new Uint8Array([byte])); await null; }} out.close(); }} }}));"
    )


def test_the_stream_is_understood_wherever_it_is_cut_and_its_text_is_never_markup(
    browser: Browser, served: Served
) -> None:
    text = "Grüße, 東京 😀 <img src=x onerror=document.title='broken'> & more"
    delta = json.dumps({"type": "transcript.text.delta", "delta": text}, ensure_ascii=False)
    done = json.dumps({"type": "transcript.text.done", "text": text}, ensure_ascii=False)
    for end in ("\n", "\r\n"):
        stream = f": hello{end}{end}data: {delta}{end}{end}event: x{end}data:{done}{end}{end}"
        with browser.page(served.address, answer_by_bytes(stream)) as page:
            page.choose_file("#chosen", ENGLISH)
            assert wait_for_answer(page) == text
            assert page.evaluate("document.querySelector('.answer .problem').hidden")
            assert page.evaluate("document.querySelectorAll('.answer img').length") == 0
            assert page.evaluate("document.title") == "cabochon"


def test_an_error_after_some_text_keeps_the_text_and_a_stream_that_breaks_off_is_told(
    browser: Browser, served: Served
) -> None:
    delta = 'data: {"type": "transcript.text.delta", "delta": "We need"}\n\n'
    error = 'data: {"error": {"message": "the answer took longer than the server allows."}}\n\n'
    broken = "The answer broke off: the connection to the server was lost."
    for rest, told in ((error, "The answer took longer than the server allows."), ("", broken), ("data: {", broken)):
        with browser.page(served.address, answer_by_bytes(delta + rest)) as page:
            page.choose_file("#chosen", ENGLISH)
            assert problem(page) == told
            assert shown(page, "text") == "We need"


def test_the_page_asks_nobody_but_its_server(page: Page, served: Served) -> None:
    choose_languages(page, "en")
    page.click("#talk")
    listen(page)
    page.click("#talk")
    wait_for_answer(page)
    other = served.address.replace("127.0.0.1", "localhost")
    sent = requests(page)
    assert f"POST {served.address}/v1/audio/transcriptions" in sent
    assert all(each.partition(" ")[2].startswith((f"{served.address}/", "data:", "blob:")) for each in sent), sent
    assert not [event for event in page.events if event["method"] == "Log.entryAdded"]
    # Not even if something in it wanted to.
    page.evaluate("window.blocked = []; addEventListener('securitypolicyviolation', (e) => blocked.push(e.blockedURI))")
    assert page.evaluate(f"fetch('{other}/healthz').then(() => 'sent', () => 'blocked')") == "blocked"
    page.evaluate(f"new Image().src = '{other}/picture'")
    page.wait("blocked.length >= 2")
    assert page.evaluate("(() => { try { document.body.innerHTML = '<p>'; } catch (e) { return e.name; } })()") == (
        "TypeError"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_fits_and_follows_light_and_dark(page: Page, scheme: str, width: int) -> None:
    page.show_as(width, 1000, scheme)
    choose_languages(page, "en", "de")
    page.evaluate(f"addAnswer(new Blob([]), '{'long' * 100}.wav')")
    wait_for_answer(page)
    page.evaluate(f"document.querySelector('.answer .text').textContent = '{'word' * 100}'; scrollTo(0, 0)")
    assert page.evaluate("innerWidth") == width
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    with Image.open(io.BytesIO(page.screenshot())) as image:
        assert image.size == (width, 1000)
        pixels = image.convert("RGB")
        corner, colours = pixels.getpixel((2, 2)), pixels.getcolors(width * 1000)
    counts = {colour: count for count, colour in colours}
    paper, button = {
        "light": ((255, 255, 255), (0x2F, 0x6F, 0xC4)), "dark": ((0x14, 0x17, 0x1D), (0x6E, 0xA8, 0xF2)),
    }[scheme]  # fmt: skip
    assert corner == paper
    assert counts.get(button, 0) > 10_000


def test_everything_that_can_be_used_has_a_name_and_is_reached_by_keys(page: Page) -> None:
    page.choose_file("#chosen", ENGLISH)
    wait_for_answer(page)
    nodes = page.call("Accessibility.getFullAXTree", {})["nodes"]
    names = {
        (node["role"]["value"], node["name"]["value"])
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in ("button", "combobox", "textbox", "image")
    }
    assert {("combobox", "Spoken language"), ("combobox", "Translate into"), ("button", "Hold to talk")} <= names
    assert all(name for _, name in names), names
    reached = []
    page.evaluate("document.activeElement.blur()")
    for _ in range(5):
        page.key("keyDown", "Tab", 9)
        page.key("keyUp", "Tab", 9)
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        ring = "getComputedStyle(document.activeElement.closest('.choose') ?? document.activeElement).outlineStyle"
        assert page.evaluate(ring) == "solid"
    assert reached == ["spoken", "target", "talk", "chosen", "Copy"]


def test_the_languages_are_those_that_cabochon_knows_and_are_remembered(page: Page, served: Served) -> None:
    for name, first in (("spoken", []), ("target", ["no translation"])):
        found = page.evaluate(f"[...document.getElementById('{name}').options].map((option) => option.text)")
        assert found == first + sorted(set(LANGUAGE_NAMES.values()))
    choose_languages(page, "fr", "es")
    page.call("Page.navigate", {"url": f"{served.address}/?again"})
    page.wait("location.search === '?again' && document.readyState === 'complete'")
    assert page.evaluate("[spoken.value, target.value]") == ["fr", "es"]
    choose_languages(page, "es", "es")
    assert page.evaluate("[spoken.value, target.value]") == ["es", ""]


def test_a_page_that_may_not_hear_says_so_and_takes_files(browser: Browser, model: cabochon.Model) -> None:
    with (
        Served(model, replace(SETTINGS, names=("cabochon.test",))) as served,
        browser.page(served.address.replace("127.0.0.1", "cabochon.test")) as page,
    ):
        assert page.evaluate("document.getElementById('talk').disabled")
        assert "only over https" in page.evaluate("document.getElementById('hint').textContent")
        choose_languages(page, "en")
        page.choose_file("#chosen", ENGLISH)
        assert wait_for_answer(page) == REFERENCES["en"]["en"]
        page.click(".answer .copy")
        page.wait("document.querySelector('.answer .copy').textContent === 'Copied'")


def test_a_name_that_somebody_pointed_at_this_machine_is_refused(browser: Browser, served: Served) -> None:
    with browser.page(served.address.replace("127.0.0.1", "evil.test")) as page:
        answer = json.loads(page.evaluate("document.body.innerText"))
    assert "is addressed to 'evil.test'" in answer["error"]["message"]


def test_the_wheel_holds_the_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("cabochon-*.whl"))) as wheel:
        packed = wheel.read("cabochon/web_page.html")
    assert packed == (REPOSITORY / "runtime" / "cabochon" / "web_page.html").read_bytes()
