"""The server for Home Assistant, asked by Wyoming's own client."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from conftest import TINY, convert_tiny
from demo_references import BY_LANGUAGE as REFERENCES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from noted_runs import noted_runs
from refusals import refused
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.info import Describe, Info

import cabochon
from cabochon.live_speech import LiveSpeech
from cabochon.wav import resample
from cabochon.wyoming_server import WyomingSettings, samples_of, serve_wyoming

SETTINGS = WyomingSettings("tiny", targets=("de", "French"), max_seconds=40.0, max_tokens=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> cabochon.Model:
    return cabochon.load(convert_tiny("int4-mixed", tmp_path_factory))


def ask(
    model: cabochon.Model, settings: WyomingSettings, talk: Callable[[AsyncTcpClient], Awaitable[object]]
) -> object:
    """What a client hears from a server that runs as long as it talks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    async def run() -> object:
        ready = asyncio.Event()
        serving = asyncio.create_task(serve_wyoming(model, settings, "127.0.0.1", port, ready.set))
        await asyncio.wait_for(ready.wait(), 10)
        try:
            async with AsyncTcpClient("127.0.0.1", port) as client:
                return await asyncio.wait_for(talk(client), 60)
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    return asyncio.run(run())


def speaking(
    waveform: np.ndarray, wish: Transcribe, rate: int = 16_000, channels: int = 1
) -> Callable[[AsyncTcpClient], Awaitable[object]]:
    """Send a sound in pieces; the answer's text, or the error's."""
    samples = np.repeat((waveform * 32767).astype("<i2")[:, None], channels, axis=1)

    async def talk(client: AsyncTcpClient) -> object:
        await client.write_event(wish.event())
        await client.write_event(AudioStart(rate, 2, channels).event())
        for start in range(0, len(samples), 1024):
            chunk = AudioChunk(rate, 2, channels, samples[start : start + 1024].tobytes())
            await client.write_event(chunk.event())
        await client.write_event(AudioStop().event())
        return await answer_of(client)

    return talk


async def answer_of(client: AsyncTcpClient) -> object:
    event = await client.read_event()
    if event is None:
        return None
    return Transcript.from_event(event).text if Transcript.is_type(event.type) else Error.from_event(event)


def waveform_of(language: str) -> np.ndarray:
    waveform, _ = soundfile.read(TINY / "demo" / REFERENCES[language]["file"], dtype="float32")
    return np.asarray(waveform)


def test_a_sentence_is_transcribed_and_translated_by_the_model_that_is_named(model: cabochon.Model) -> None:
    english = waveform_of("en")
    assert ask(model, SETTINGS, speaking(english, Transcribe(language="en"))) == REFERENCES["en"]["en"]
    wish = Transcribe(name="tiny-to-German", language="en")
    assert ask(model, SETTINGS, speaking(english, wish)) == REFERENCES["en"]["de"]
    assert ask(model, SETTINGS, speaking(english, Transcribe(language="en"), channels=2)) == REFERENCES["en"]["en"]


def test_two_who_speak_at_once_are_both_heard(model: cabochon.Model) -> None:
    async def talk(client: AsyncTcpClient) -> object:
        async with AsyncTcpClient(client.host, client.port) as other:
            said = {"en": client, "es": other}
            sounds = {each: (waveform_of(each) * 32767).astype("<i2") for each in said}
            for each, speaker in said.items():
                await speaker.write_event(Transcribe(language=each).event())
                await speaker.write_event(AudioStart(16_000, 2, 1).event())
            for start in range(0, max(map(len, sounds.values())), 4096):
                for each, speaker in said.items():
                    piece = sounds[each][start : start + 4096].tobytes()
                    await speaker.write_event(AudioChunk(16_000, 2, 1, piece).event())
                await asyncio.sleep(0.02)  # the model comes between
            for speaker in said.values():
                await speaker.write_event(AudioStop().event())
            return [await answer_of(speaker) for speaker in said.values()]

    assert ask(model, SETTINGS, talk) == [REFERENCES["en"]["en"], REFERENCES["es"]["es"]]


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_speech_is_heard_while_it_is_sent(model: cabochon.Model, monkeypatch: pytest.MonkeyPatch, rate: int) -> None:
    runs = noted_runs(model, monkeypatch)
    waveform = resample(waveform_of("en"), 16_000, rate)
    samples = (np.clip(waveform, -1, 1) * 32767).astype("<i2")

    async def talk(client: AsyncTcpClient) -> object:
        await client.write_event(Transcribe(language="en").event())
        for start in range(0, len(samples), 1024):
            await client.write_event(AudioChunk(rate, 2, 1, samples[start : start + 1024].tobytes()).event())
        for _ in range(500):
            if runs and sum(runs[-1]) > 40:
                break
            await asyncio.sleep(0.01)
        before = sum(runs[-1])
        await client.write_event(AudioStop().event())
        return before, await answer_of(client)

    before, answer = ask(model, SETTINGS, talk)  # type: ignore[misc]
    # The sentence has 50 audio embeddings, and the instruction before it more than 20 tokens.
    assert before > 40
    assert answer == REFERENCES["en"]["en"]


def test_who_goes_away_while_speaking_leaves_the_line(model: cabochon.Model) -> None:
    async def talk(client: AsyncTcpClient) -> object:
        samples = (waveform_of("en") * 32767).astype("<i2").tobytes()
        for _ in range(3):
            async with AsyncTcpClient(client.host, client.port) as other:
                await other.write_event(AudioStart(16_000, 2, 1).event())
                await other.write_event(AudioChunk(16_000, 2, 1, samples).event())
        # A moment passes until the server knows.
        for _ in range(100):
            async with AsyncTcpClient(client.host, client.port) as other:
                answer = await speaking(waveform_of("en"), Transcribe(language="en"))(other)
            if not isinstance(answer, Error):
                break
            await asyncio.sleep(0.05)
        return answer

    assert ask(model, replace(SETTINGS, longest_queue=1), talk) == REFERENCES["en"]["en"]


def test_clients_learn_what_there_is(model: cabochon.Model) -> None:
    async def talk(client: AsyncTcpClient) -> object:
        await client.write_event(Describe().event())
        event = await client.read_event()
        assert event is not None
        return Info.from_event(event)

    info = ask(model, SETTINGS, talk)
    assert isinstance(info, Info)
    names = [each.name for program in info.asr for each in program.models]
    assert names == ["tiny", "tiny-to-German", "tiny-to-French"]
    assert "en" in info.asr[0].models[0].languages


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Transcribe(name="other", language="en"), "tiny-to-French"),
        (Transcribe(name="tiny-to-German"), "spoken language"),
        (Transcribe(language="xx"), "xx"),
    ],
)
def test_what_cannot_be_is_told_in_one_sentence(model: cabochon.Model, wish: Transcribe, words: str) -> None:
    answer = ask(model, SETTINGS, speaking(waveform_of("en"), wish))
    assert isinstance(answer, Error)
    assert words in answer.text
    assert answer.text.endswith(".")


def test_a_sound_without_end_is_refused(model: cabochon.Model) -> None:
    answer = ask(model, SETTINGS, speaking(np.zeros(41 * 16_000, np.float32), Transcribe(language="en")))
    assert isinstance(answer, Error)
    assert "40 s" in answer.text


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=200)
    | st.builds(
        lambda kind, data, length: json.dumps({"type": kind, "data": data, "payload_length": length}).encode() + b"\n",
        st.sampled_from(["audio-chunk", "audio-start", "audio-stop", "transcribe", "describe", "x", 7, None]),
        st.dictionaries(st.sampled_from(["rate", "width", "channels", "name"]), st.integers() | st.none() | st.text())
        | st.none(),
        st.sampled_from([0, -1, 10**12, None, "a"]),
    )
)
def test_whatever_one_client_sends_the_next_one_is_answered(model: cabochon.Model, content: bytes) -> None:
    async def talk(client: AsyncTcpClient) -> object:
        reader, writer = await asyncio.open_connection(client.host, client.port)
        writer.write(content)
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 10)
        writer.close()
        await client.write_event(Describe().event())
        event = await client.read_event()
        return event is not None and Info.is_type(event.type)

    assert ask(model, SETTINGS, talk) is True


@pytest.mark.parametrize("width", [1, 2, 4])
def test_samples_of_every_width_are_the_same_sound(width: int) -> None:
    wave = np.sin(np.arange(1000) / 5) * 0.5
    kinds = {1: wave * 127 + 128, 2: wave * 32767, 4: wave * (2**31 - 1)}
    dtype = {1: np.uint8, 2: np.dtype("<i2"), 4: np.dtype("<i4")}[width]
    found = samples_of(AudioChunk(16_000, width, 1, kinds[width].astype(dtype).tobytes()))
    assert np.abs(found - wave).max() < 0.02


@pytest.mark.parametrize(("rate", "width", "channels"), [(0, 2, 1), (16_000, 3, 1), (16_000, 2, 0), (10**9, 2, 1)])
def test_samples_that_nobody_sends_are_refused(rate: int, width: int, channels: int) -> None:
    with refused(cabochon.RequestError, "expected"):
        samples_of(AudioChunk(rate, width, channels, bytes(12)))


def test_an_address_that_is_taken_is_refused(model: cabochon.Model) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with refused(cabochon.RequestError, str(port)):
            asyncio.run(serve_wyoming(model, SETTINGS, "127.0.0.1", port))


def test_who_sends_a_little_and_goes_away_at_once_leaves_the_line(model: cabochon.Model) -> None:
    chunk = AudioChunk(16_000, 2, 1, bytes(640)).event()
    line = json.dumps({"type": chunk.type, "data": chunk.data, "payload_length": 640}).encode() + b"\n"

    async def talk(client: AsyncTcpClient) -> object:
        for _ in range(2 * SETTINGS.longest_queue):
            reader, writer = await asyncio.open_connection(client.host, client.port)
            writer.write(line + bytes(640))
            writer.write_eof()
            await reader.read()
            writer.close()
        return await speaking(np.zeros(1600, np.float32), Transcribe(language="en"))(client)

    assert not isinstance(ask(model, SETTINGS, talk), Error)


def test_who_says_nothing_more_is_not_waited_for(model: cabochon.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cabochon.wyoming_server.SPEAKING_SECONDS", 0.3)

    async def talk(client: AsyncTcpClient) -> object:
        await client.write_event(AudioChunk(16_000, 2, 1, bytes(640)).event())
        return await client.read_event()

    assert ask(model, replace(SETTINGS, time_limit=600.0), talk) is None


def test_a_place_is_free_when_the_time_for_an_answer_is_over(model: cabochon.Model) -> None:
    async def talk(client: AsyncTcpClient) -> object:
        await client.write_event(AudioChunk(16_000, 2, 1, bytes(640)).event())
        await asyncio.sleep(1.0)
        async with AsyncTcpClient(client.host, client.port) as other:
            return await speaking(np.zeros(1600, np.float32), Transcribe(language="en"))(other)

    assert not isinstance(ask(model, replace(SETTINGS, longest_queue=1, time_limit=0.6), talk), Error)


def test_so_many_connect_and_no_more(model: cabochon.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cabochon.wyoming_server.MOST_CONNECTIONS", 3)

    async def talk(client: AsyncTcpClient) -> object:
        others = [await asyncio.open_connection(client.host, client.port) for _ in range(3)]
        refused_at_once = await asyncio.wait_for(others[-1][0].read(), 5)
        for _, writer in others:
            writer.close()
        await client.write_event(Describe().event())
        return refused_at_once == b"" and await client.read_event() is not None

    assert ask(model, SETTINGS, talk) is True


def test_what_clients_who_went_away_had_said_is_forgotten_at_once(model: cabochon.Model) -> None:
    sound, _ = soundfile.read(TINY / "demo" / REFERENCES["en"]["file"], dtype="int16")

    async def talk(client: AsyncTcpClient) -> object:
        host, port = "127.0.0.1", client.port
        for _ in range(3):
            async with AsyncTcpClient(host, port) as other:
                await other.write_event(Transcribe(language="en").event())
                await other.write_event(AudioStart(16_000, 2, 1).event())
                await other.write_event(AudioChunk(16_000, 2, 1, sound.tobytes()).event())
        for _ in range(100):
            await asyncio.sleep(0.1)
            if not any(type(each) is LiveSpeech for each in gc.get_objects()):
                return "forgotten"
        return "kept"

    gc.collect()
    gc.disable()  # Python would look for circles when there are many objects, however large
    try:
        assert ask(model, SETTINGS, talk) == "forgotten"
    finally:
        gc.enable()
