"""The HTTP server, asked by the real client of OpenAI and by a fuzzer."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pytest
import schemathesis
from conftest import TINY, convert_tiny
from demo_references import BY_LANGUAGE as REFERENCES
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from served import Served, wait_until

import cabochon
from cabochon.server import ServerSettings

ENGLISH = TINY / "demo" / REFERENCES["en"]["file"]
SETTINGS = ServerSettings("tiny", longest_queue=40, max_bytes=3_000_000, max_tokens=64)
KEY = "secret"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> cabochon.Model:
    return cabochon.load(convert_tiny("int4-mixed", tmp_path_factory))


@pytest.fixture(scope="module")
def served(model: cabochon.Model) -> Iterator[Served]:
    with Served(model, SETTINGS) as server:
        yield server


def test_a_sound_is_transcribed_and_translated(client: openai.OpenAI) -> None:
    heard = client.audio.transcriptions.create(model="tiny", file=ENGLISH, language="en")
    assert heard.text == REFERENCES["en"]["en"]
    german = TINY / "demo" / REFERENCES["de"]["file"]
    meant = client.audio.translations.create(model="tiny", file=german, extra_body={"language": "de"})
    assert meant.text == REFERENCES["de"]["en"]


def test_a_transcript_comes_piece_by_piece(client: openai.OpenAI) -> None:
    events = list(client.audio.transcriptions.create(model="tiny", file=ENGLISH, language="en", stream=True))
    assert [event.type for event in events[:-1]] == ["transcript.text.delta"] * (len(events) - 1)
    assert len(events) > 4
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == REFERENCES["en"]["en"]


def test_a_long_sound_has_parts_with_times(client: openai.OpenAI, long_sound: Path) -> None:
    answer = client.audio.transcriptions.create(
        model="tiny", file=long_sound, language="en", response_format="verbose_json"
    )
    assert answer.segments is not None
    assert len(answer.segments) == 11
    assert sum(segment.text == REFERENCES["en"]["en"] for segment in answer.segments) >= 9
    assert 28 < answer.duration < 34
    subtitles = client.audio.transcriptions.create(model="tiny", file=long_sound, language="en", response_format="srt")
    assert str(subtitles).count(" --> ") == 11
    text = client.audio.transcriptions.create(model="tiny", file=long_sound, language="en").text
    assert text.count(REFERENCES["en"]["en"]) >= 9


def test_a_chat_is_answered_whole_and_piece_by_piece(client: openai.OpenAI, model: cabochon.Model) -> None:
    question = "Translate the following text from English into German: We need to buy 7 oysters."
    expected = model.chat([cabochon.Message("user", question)], cabochon.SamplingSettings()).finish()
    messages = [{"role": "user", "content": question}]
    whole = client.chat.completions.create(model="tiny", messages=messages, temperature=0)  # type: ignore[arg-type]
    assert whole.choices[0].message.content == expected
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert whole.usage.prompt_tokens > whole.usage.completion_tokens > 3
    pieces = list(client.chat.completions.create(model="tiny", messages=messages, temperature=0, stream=True))  # type: ignore[call-overload]
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected
    assert pieces[-1].choices[0].finish_reason == "stop"
    short = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=2)  # type: ignore[arg-type]
    assert short.choices[0].finish_reason == "length"


def test_a_chat_may_have_a_sound(client: openai.OpenAI, model: cabochon.Model) -> None:
    instruction = model.package.manifest.prompts.transcribe.replace("{source}", "English")
    data = base64.b64encode(ENGLISH.read_bytes()).decode()
    content = [
        {"type": "text", "text": instruction},
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
    ]
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": content}],
        temperature=0,  # type: ignore[list-item, misc]
    )
    assert answer.choices[0].message.content == REFERENCES["en"]["en"]


def test_clients_learn_the_name_of_the_model(client: openai.OpenAI) -> None:
    assert [each.id for each in client.models.list()] == ["tiny"]


@pytest.mark.parametrize("content", [b"", b"not a sound", b"RIFF" + bytes(40)])
def test_what_is_no_sound_is_refused_without_telling_where_it_was_kept(served: Served, content: bytes) -> None:
    answer = httpx.post(f"{served.address}/v1/audio/transcriptions", files={"file": ("a.wav", content)})
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert "sound" in message
    assert "/" not in message


AUDIO = {"type": "input_audio"}
BAD_CHATS: list[object] = [
    {}, {"messages": []}, {"messages": [{"role": "robot", "content": "a"}]}, {"messages": "hello"}, [], None,
    {"messages": [{"role": "user", "content": "a"}], "temperature": -1},
    {"messages": [{"role": "user", "content": "a"}], "n": 2},
    {"messages": [{"role": "user", "content": [AUDIO | {"input_audio": {"data": "?", "format": "wav"}}]}]},
    {"messages": [{"role": "user", "content": "word " * 4000}]},
]  # fmt: skip


@pytest.mark.parametrize("body", BAD_CHATS)
def test_chats_that_cannot_be_are_refused_in_one_sentence(served: Served, body: object) -> None:
    answer = httpx.post(f"{served.address}/v1/chat/completions", json=body)
    assert answer.status_code in (400, 422)
    message = answer.json()["error"]["message"]
    assert message.endswith(".")
    assert len(message.splitlines()) == 1


def test_requests_that_are_too_large_are_refused_whatever_they_say(served: Served) -> None:
    url = f"{served.address}/v1/audio/transcriptions"
    large = bytes(SETTINGS.max_bytes + 1)
    assert httpx.post(url, files={"file": ("a.wav", large)}).status_code == 413

    def chunks() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        yield from (large[:100_000] for _ in range(50))
        yield b"\r\n--x--\r\n"

    answer = httpx.post(url, content=chunks(), headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 413


def test_no_name_of_a_file_reaches_the_file_system(served: Served, tmp_path: Path) -> None:
    before = set(Path("/tmp").iterdir())
    for name in ("/etc/passwd", "../../outside.wav", "a\x00b.wav", str(tmp_path / "made.wav")):
        files = {"file": (name, ENGLISH.read_bytes())}
        answer = httpx.post(f"{served.address}/v1/audio/transcriptions", files=files, data={"language": "en"})
        assert answer.status_code in (200, 400, 422)
    assert list(tmp_path.iterdir()) == []
    left = [path for path in set(Path("/tmp").iterdir()) - before if path.name.startswith("cabochon-")]
    assert left == []


def test_only_who_has_the_key_is_answered(model: cabochon.Model) -> None:
    with Served(model, replace(SETTINGS, api_key=KEY)) as served:
        with pytest.raises(openai.AuthenticationError):
            served.client("wrong").models.list()
        assert served.client(KEY).models.list().data[0].id == "tiny"
        assert httpx.get(f"{served.address}/healthz").json()["status"] == "ok"
        assert httpx.get(f"{served.address}/v1/models").status_code == 401


def test_many_at_once_are_all_answered_and_those_beyond_the_line_are_told_so(model: cabochon.Model) -> None:
    def ask(client: openai.OpenAI) -> str:
        try:
            return client.audio.transcriptions.create(model="tiny", file=ENGLISH, language="en").text
        except openai.RateLimitError:
            return "busy"

    with Served(model, replace(SETTINGS, longest_queue=3)) as served, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: ask(served.client()), range(24)))
        assert httpx.get(f"{served.address}/healthz").json()["requests"] == 0
    assert set(answers) == {REFERENCES["en"]["en"], "busy"}
    with Served(model, replace(SETTINGS, longest_queue=24)) as served, ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: ask(served.client()), range(24)))
    assert answers == [REFERENCES["en"]["en"]] * 24


def test_an_answer_that_takes_too_long_is_ended_and_the_next_one_is_right(
    model: cabochon.Model, long_sound: Path
) -> None:
    with Served(model, replace(SETTINGS, time_limit=0.3)) as served:
        with pytest.raises(openai.APIStatusError) as caught:
            served.client().audio.transcriptions.create(model="tiny", file=long_sound, language="en")
        assert caught.value.status_code == 408
        wait_until(lambda: httpx.get(f"{served.address}/healthz").json()["requests"] == 0)
        assert served.client().models.list().data


def test_who_hangs_up_does_not_hold_the_line(served: Served, long_sound: Path) -> None:
    files, data = {"file": ("a.flac", long_sound.read_bytes())}, {"language": "en", "stream": "true"}
    with httpx.stream("POST", f"{served.address}/v1/audio/transcriptions", files=files, data=data) as answer:
        next(answer.iter_lines())
    wait_until(lambda: httpx.get(f"{served.address}/healthz").json()["requests"] == 0)


OPERATIONS = ("GET /healthz", "GET /v1/models", "POST /v1/audio/transcriptions", "POST /v1/audio/translations",
              "POST /v1/chat/completions")  # fmt: skip


@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_request_of_a_fuzzer_breaks_the_server(served: Served, operation: str) -> None:
    schema = schemathesis.openapi.from_url(f"{served.address}/openapi.json")
    found = {result.ok().label: result.ok() for result in schema.get_all_operations()}
    assert sorted(found) == sorted(OPERATIONS)

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=found[operation].as_strategy())
    def ask(case: schemathesis.Case) -> None:
        # What has the right shape may still be no sound, or no conversation.
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    ask()


def multipart(language: str) -> dict[str, object]:
    return {"files": {"file": ("a.wav", ENGLISH.read_bytes())}, "data": {"language": language}}


def test_the_page_of_another_site_is_refused_whatever_it_asks_for(served: Served) -> None:
    port = served.address.rpartition(":")[2]
    others = (
        "https://example.com", "http://127.0.0.1", f"http://localhost:{port}", f"http://127.0.0.1:{port}9", "null", "",
        f"ftp://127.0.0.1:{port}", f"http://127.0.0.1:{port}@example.com", "chrome-extension://abcdef",
    )  # fmt: skip
    url = f"{served.address}/v1/audio/transcriptions"
    for origin in others:
        answer = httpx.post(url, headers={"Origin": origin}, **multipart("en"))  # type: ignore[arg-type]
        assert answer.status_code == 403, origin
        assert_one_sentence(answer)
        assert httpx.options(url, headers={"Origin": origin}).status_code == 403
        assert httpx.get(f"{served.address}/healthz", headers={"Origin": origin}).status_code == 403
    for origin in (served.address, f"https://127.0.0.1:{port}"):  # the latter behind a proxy that encrypts
        answer = httpx.post(url, headers={"Origin": origin}, **multipart("en"))  # type: ignore[arg-type]
        assert answer.json()["text"] == REFERENCES["en"]["en"]


def assert_one_sentence(answer: httpx.Response) -> None:
    message = answer.json()["error"]["message"]
    assert message.endswith(".")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("listening", "names", "answered", "refused"),
    [
        (
            "127.0.0.1", (),
            ("127.0.0.1", "localhost", "LOCALHOST.", "127.0.0.1:8642", "[::1]:8642", "127.9.9.9"),
            ("example.com", "127.0.0.1.example.com", "localhost.example.com:80", "192.168.1.5", "a b", "", "::1"),
        ),
        ("0.0.0.0", (), ("192.168.1.5:8642", "[fe80::1]", "localhost"), ("example.com", "pi.local")),
        ("pi.local", (), ("pi.local:8642", "PI.local", "192.168.1.5"), ("local", "pi", "pi.local.example.com")),
        ("127.0.0.1", ("pi.local", "10.0.0.7"), ("pi.local", "10.0.0.7:1", "localhost"), ("pi.locale", "10.0.0.8")),
    ],
)  # fmt: skip
def test_only_requests_for_a_name_of_the_server_are_answered(
    model: cabochon.Model, listening: str, names: tuple[str, ...], answered: tuple[str, ...], refused: tuple[str, ...]
) -> None:
    with Served(model, replace(SETTINGS, host=listening, names=names)) as served:
        for path in ("/", "/healthz", "/v1/models"):
            for host in answered:
                assert httpx.get(f"{served.address}{path}", headers={"Host": host}).status_code == 200, host
            for host in refused:
                answer = httpx.get(f"{served.address}{path}", headers={"Host": host})
                # What is no name at all may be refused before.
                assert answer.status_code == 403 or (host == "a b" and answer.status_code == 400), host
                if answer.status_code == 403:
                    assert_one_sentence(answer)
        own = {"Host": answered[0], "Origin": f"http://{answered[0]}"}
        assert httpx.get(f"{served.address}/v1/models", headers=own).status_code == 200


def test_a_streamed_translation_ends_with_the_transcript_as_well(served: Served) -> None:
    german = TINY / "demo" / REFERENCES["de"]["file"]
    files, data = {"file": ("a.wav", german.read_bytes())}, {"language": "de", "target": "en", "stream": "true"}
    answer = httpx.post(f"{served.address}/v1/audio/translations", files=files, data=data)
    *_, last = [line for line in answer.text.splitlines() if line]
    assert json.loads(last.removeprefix("data: ")) == {
        "type": "transcript.text.done", "text": REFERENCES["de"]["en"], "transcript": REFERENCES["de"]["de"],
    }  # fmt: skip


def test_the_page_needs_no_key_and_allows_nothing_but_what_is_in_it(model: cabochon.Model) -> None:
    name = "</script><script>alert(1)</script>"
    with Served(model, replace(SETTINGS, name=name, api_key=KEY)) as served:
        answer = httpx.get(f"{served.address}/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert KEY not in answer.text
    assert name not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    for directive in ("default-src", "frame-ancestors", "base-uri", "form-action"):
        assert policy[directive] == "'none'"
    assert policy["connect-src"] == "'self'"
    for element in ("script", "style"):
        (content,) = re.findall(f"<{element}>(.*?)</{element}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy[f"{element}-src"].split()
        assert "unsafe" not in policy[f"{element}-src"]
    assert not re.search(r"\b(src|href)=\"(?!data:)|url\(|@import", answer.text)
