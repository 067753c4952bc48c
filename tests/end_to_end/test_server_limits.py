"""What clients of the HTTP server cannot do to it: hold it, fill it, or keep it busy."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from conftest import convert_tiny
from served import Served, wait_until

import cabochon
from cabochon.server import ServerSettings

SETTINGS = ServerSettings("tiny", max_bytes=300_000, max_tokens=4)
CHAT_HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
WHOLE = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> cabochon.Model:
    return cabochon.load(convert_tiny("int4-mixed", tmp_path_factory))


def connect(served: Served) -> socket.socket:
    host, _, port = served.address.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def test_who_reads_nothing_of_answers_after_which_the_connection_closes_is_not_waited_for(
    model: cabochon.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cabochon.server_connections.HEADER_SECONDS", 0.4)
    page = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    with Served(model, SETTINGS) as served, contextlib.ExitStack() as stack:
        for count in (20, 60, 100):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            host, _, port = served.address.removeprefix("http://").partition(":")
            client.connect((host, int(port)))
            client.sendall(count * (page + b"\r\n") + page + b"Connection: close\r\n\r\n")
        wait_until(lambda: not served.connections)


@pytest.mark.parametrize("sent", [b"", WHOLE[:30], WHOLE + b"GET"])
def test_who_does_not_finish_a_request_is_not_waited_for(
    model: cabochon.Model, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr("cabochon.server_connections.HEADER_SECONDS", 0.4)
    with Served(model, SETTINGS) as served, connect(served) as client:
        client.sendall(sent)
        began, answer = time.monotonic(), b""
        with contextlib.suppress(ConnectionResetError):
            while piece := client.recv(1000):
                answer += piece
        assert time.monotonic() - began < 4
        assert answer.count(b"200 OK") == sent.count(b"\r\n\r\n")


def test_who_stops_in_the_middle_of_a_request_is_told_so(
    model: cabochon.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cabochon.server_limits.BODY_SECONDS", 0.3)
    with Served(model, SETTINGS) as served, connect(served) as client:
        client.sendall(f"{CHAT_HEAD}Content-Length: 100\r\n\r\n{{".encode())
        assert b"408" in client.recv(1000)


def test_so_many_are_connected_and_no_more(model: cabochon.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cabochon.server_connections.MOST_CONNECTIONS", 3)
    with Served(model, SETTINGS) as served, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(served)) for _ in range(4)]
        with contextlib.suppress(ConnectionResetError):
            assert clients[-1].recv(1) == b""
        clients[0].close()
        clients[1].close()
        wait_until(lambda: answers(served))


def answers(served: Served) -> bool:
    try:
        return httpx.get(f"{served.address}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_requests_that_are_too_large_together_are_refused(
    model: cabochon.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cabochon.server_limits.TOGETHER", 1)
    with Served(model, SETTINGS) as served, connect(served) as client:
        size = SETTINGS.max_bytes
        client.sendall(f"{CHAT_HEAD}Content-Length: {size}\r\n\r\n".encode() + b" " * (size - 10))
        url, body = f"{served.address}/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 1000}]}
        wait_until(lambda: httpx.post(url, json=body).status_code == 429)
        client.close()
        wait_until(lambda: httpx.post(url, json=body | {"max_tokens": 1}).status_code == 200)


def test_a_sound_of_days_is_refused_before_it_is_listened_to(model: cabochon.Model, tmp_path: Path) -> None:
    silence = tmp_path / "silence.flac"
    soundfile.write(silence, np.zeros(16_000 * 25 * 60, np.int16), 16_000)
    assert silence.stat().st_size < SETTINGS.max_bytes
    with Served(model, replace(SETTINGS, time_limit=60.0)) as served:
        url, files = f"{served.address}/v1/audio/transcriptions", {"file": ("a.flac", silence.read_bytes())}
        answer = httpx.post(url, files=files, data={"language": "en"})
        assert answer.status_code == 400
        assert "1500 s, but this server listens to 1440 s" in answer.json()["error"]["message"]
