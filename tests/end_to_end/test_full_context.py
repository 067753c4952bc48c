"""At the end of the context: what does not fit is refused before anything runs, and an answer that fills it is cut."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from commands import CABOCHON, assert_refused, run_command
from conftest import TINY, convert_tiny
from noted_runs import noted_runs
from refusals import refused
from served import Served
from wyoming.asr import Transcribe
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error

import cabochon
from cabochon.sampling import SamplingSettings
from cabochon.server import ServerSettings
from cabochon.wyoming_server import WyomingSettings, serve_wyoming

GREEDY = SamplingSettings()
QUESTION = "Translate to German: Where is the station?"
SOUND = TINY / "demo" / "german_unseen_voice.wav"
LONG = "word " * 200


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_tiny("float", tmp_path_factory)


@pytest.fixture(scope="module")
def positions(package: Path) -> int:
    """Of the question as a prompt."""
    return cabochon.load(package).count_positions([cabochon.Message("user", QUESTION)])


@pytest.fixture(scope="module")
def narrow(package: Path, positions: int) -> cabochon.Model:
    """With room for the question and two tokens, the last of which need not be run."""
    return cabochon.load(package, context_length=positions + 1)


def test_an_answer_that_fills_the_context_is_cut_and_says_why(narrow: cabochon.Model, package: Path) -> None:
    question = [cabochon.Message("user", QUESTION)]
    cut = narrow.chat(question, GREEDY)
    text = cut.finish()
    whole = cabochon.load(package).chat(question, GREEDY)
    assert whole.finish().startswith(text)
    assert text != whole.text
    assert (cut.statistics.new_tokens, cut.statistics.complete, cut.statistics.context_full) == (2, False, True)
    assert (whole.statistics.complete, whole.statistics.context_full) == (True, False)
    short = narrow.chat(question, GREEDY, max_tokens=1)
    short.finish()
    assert (short.statistics.complete, short.statistics.context_full) == (False, False)


def test_a_prompt_without_room_for_an_answer_is_refused_at_once_and_costs_nothing(
    narrow: cabochon.Model, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow.chat([cabochon.Message("user", QUESTION)], GREEDY).finish()
    runs = noted_runs(narrow, monkeypatch)
    with refused(cabochon.RequestError, f"of {positions + 1} positions", "no room for an answer", "shorten"):
        narrow.chat([cabochon.Message("user", LONG)])
    assert runs == []
    # What was held before is held still.
    narrow.chat([cabochon.Message("user", QUESTION)], GREEDY).finish()
    assert runs[0][0] > 0


def test_a_sound_that_does_not_fit_is_refused_before_it_is_encoded(
    narrow: cabochon.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = noted_runs(narrow, monkeypatch)
    monkeypatch.setattr(narrow._hearing, "encode", lambda *_: pytest.fail("it was encoded"))
    with refused(cabochon.RequestError, "no room for an answer"):
        narrow.transcribe(SOUND, "German")
    with refused(cabochon.RequestError, "no room for an answer"):
        narrow.chat([cabochon.Message("user", QUESTION, has_audio=True)], sound=SOUND)
    assert runs == []


def test_a_clip_that_is_heard_while_spoken_is_refused_when_it_no_longer_fits(package: Path) -> None:
    model = cabochon.load(package, context_length=60)
    clip = model.start_clip("German")
    assert clip is not None
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 16_000).astype(np.float32)
    with refused(cabochon.RequestError, "60 positions", "context length"):
        for _ in range(30):
            clip.push(noise)


def test_a_conversation_stays_what_it_was_when_a_question_no_longer_fits(package: Path, positions: int) -> None:
    model = cabochon.load(package, context_length=positions + 40)
    conversation = model.start_conversation()
    first = conversation.ask(QUESTION, GREEDY).finish()
    before = conversation.messages
    with refused(cabochon.RequestError, "no room for an answer", "a conversation: start a new one"):
        for _ in range(40):
            before = conversation.messages
            conversation.ask(QUESTION, GREEDY).finish()
    assert conversation.messages == before
    conversation.rewind(sum(message.role == "user" for message in before))
    assert conversation.ask(QUESTION, GREEDY).finish() == first


def test_the_commands_refuse_or_say_that_the_context_is_full(package: Path, positions: int) -> None:
    narrow = ("--context-length", str(positions + 1))
    assert_refused(run_command(CABOCHON, "chat", package, LONG, *narrow), "no room for an answer")
    assert_refused(run_command(CABOCHON, "transcribe", package, SOUND, *narrow), "no room for an answer")
    assert_refused(
        run_command(CABOCHON, "translate", package, SOUND, "--source", "de", "--target", "en", *narrow), "no room"
    )
    cut = run_command(CABOCHON, "chat", package, QUESTION, "--greedy", *narrow)
    assert (cut.returncode, cut.stderr) == (0, "note: the answer was cut after 2 tokens: the context is full.\n")


def test_a_typed_chat_ends_with_a_sentence_when_its_context_is_full(package: Path, positions: int) -> None:
    command = [CABOCHON, "chat", str(package), "--greedy", "--context-length", str(positions + 40)]
    result = subprocess.run(
        command, input=f"{QUESTION}\n" * 40, capture_output=True, encoding="utf-8", timeout=120, check=False
    )
    assert result.returncode == 2
    assert len(result.stdout.splitlines()) >= 1
    assert "no room for an answer" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("stream", [False, True])
def test_the_server_refuses_what_does_not_fit_and_says_where_an_answer_was_cut(
    narrow: cabochon.Model, *, stream: bool
) -> None:
    with Served(narrow, ServerSettings("tiny", longest_queue=4, max_bytes=3_000_000)) as server:
        body = {"messages": [{"role": "user", "content": LONG}], "stream": stream}
        answer = httpx.post(f"{server.address}/v1/chat/completions", json=body)
        assert answer.status_code == 400
        message = answer.json()["error"]["message"]
        assert "no room for an answer" in message
        assert message.endswith(".")
        with SOUND.open("rb") as file:
            heard = httpx.post(
                f"{server.address}/v1/audio/transcriptions", files={"file": file}, data={"stream": stream}
            )
        assert heard.status_code == 400
        assert "no room for an answer" in heard.json()["error"]["message"]
        body["messages"] = [{"role": "user", "content": QUESTION}]
        answer = httpx.post(f"{server.address}/v1/chat/completions", json=body | {"temperature": 0})
        assert answer.status_code == 200
        last = answer.text.strip().splitlines()[-3].removeprefix("data: ") if stream else answer.text
        assert json.loads(last)["choices"][0]["finish_reason"] == "length"


def test_who_speaks_to_the_wyoming_server_is_told_in_a_sentence(narrow: cabochon.Model) -> None:
    waveform, rate = soundfile.read(SOUND, dtype="int16")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    async def run() -> Error:
        ready = asyncio.Event()
        settings = WyomingSettings("tiny", targets=(), max_seconds=40.0, max_tokens=64)
        serving = asyncio.create_task(serve_wyoming(narrow, settings, "127.0.0.1", port, ready.set))
        await asyncio.wait_for(ready.wait(), 10)
        try:
            async with AsyncTcpClient("127.0.0.1", port) as client:
                await client.write_event(Transcribe(language="de").event())
                await client.write_event(AudioStart(rate, 2, 1).event())
                await client.write_event(AudioChunk(rate, 2, 1, waveform.tobytes()).event())
                await client.write_event(AudioStop().event())
                event = await asyncio.wait_for(client.read_event(), 60)
                assert event is not None
                return Error.from_event(event)
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    error = asyncio.run(run())
    assert "positions" in error.text
    assert "context length" in error.text
