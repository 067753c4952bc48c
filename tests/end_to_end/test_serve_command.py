"""The server as it is started by hand: one process, many requests."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from commands import CABOCHON, assert_refused, run_command, start_command
from conftest import TINY, convert_tiny
from demo_references import REFERENCES

REQUESTS, AT_ONCE, WARM_UP = 1000, 4, 100


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_tiny("int4-mixed", tmp_path_factory)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture
def served(package: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    port = free_port()
    command = [CABOCHON, "serve", str(package), "--port", str(port), "--name", "tiny"]
    process = start_command(*command)
    assert process.stderr is not None
    try:
        assert f"http://127.0.0.1:{port}/v1" in process.stderr.readline()
        address = f"http://127.0.0.1:{port}"
        ends = time.monotonic() + 20
        while not answers(address):
            assert time.monotonic() < ends
            time.sleep(0.05)
        yield address, process
    finally:
        process.kill()
        process.communicate()


def answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def resident_bytes(process: subprocess.Popen[str]) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def test_a_thousand_requests_lose_nothing_and_leave_nothing_behind(
    served: tuple[str, subprocess.Popen[str]],
) -> None:
    address, process = served
    sounds = {each["file"]: (TINY / "demo" / each["file"]).read_bytes() for each in REFERENCES}
    with httpx.Client(timeout=60) as client:

        def ask(number: int) -> str:
            reference = REFERENCES[number % len(REFERENCES)]
            answer = client.post(
                f"{address}/v1/audio/transcriptions",
                files={"file": ("a.wav", sounds[reference["file"]])},
                data={"language": reference["source"]},
            )
            assert answer.status_code == 200, answer.text
            text: str = answer.json()["text"]
            return text

        expected = [ask(number) for number in range(len(REFERENCES))]
        with ThreadPoolExecutor(AT_ONCE) as threads:
            first = list(threads.map(ask, range(WARM_UP)))
            before = resident_bytes(process)
            rest = list(threads.map(ask, range(WARM_UP, REQUESTS)))
        after = resident_bytes(process)
    found = first + rest
    assert found == [expected[number % len(expected)] for number in range(REQUESTS)]
    assert after < 1.05 * before


def test_an_interrupt_ends_the_server_cleanly(served: tuple[str, subprocess.Popen[str]]) -> None:
    _, process = served
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode in (0, 130)
    assert "Traceback" not in errors


def test_what_cannot_be_served_is_refused(package: Path, tmp_path: Path) -> None:
    assert_refused(run_command(CABOCHON, "serve", tmp_path / "missing"), "missing")
    assert_refused(run_command(CABOCHON, "serve", package, "--port", "70000"), "70000")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run_command(CABOCHON, "serve", package, "--port", str(port))
    assert result.returncode == 2
    assert "cannot be listened at" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_server_that_others_reach_asks_for_a_key(package: Path) -> None:
    result = run_command(CABOCHON, "serve", package, "--host", "203.0.113.1", "--port", "8642")
    assert result.returncode == 2
    assert "CABOCHON_API_KEY" in result.stderr


def test_a_name_that_is_none_is_no_further_name_of_the_server(package: Path) -> None:
    for name in ("http://pi.local", "pi.local:8642", "", "a b", "*"):
        result = run_command(CABOCHON, "serve", package, "--allow-host", name)
        assert result.returncode == 2
        assert "no name of a machine" in result.stderr
        assert "Traceback" not in result.stderr


def test_the_command_tells_where_the_page_is_and_answers_to_its_names(package: Path) -> None:
    port = free_port()
    names = ("--allow-host", "pi.local", "--allow-host", "10.0.0.7")
    process = start_command(CABOCHON, "serve", str(package), "--port", str(port), *names)
    assert process.stderr is not None
    address = f"http://127.0.0.1:{port}"
    try:
        assert f"{address} in a browser" in process.stderr.readline()
        ends = time.monotonic() + 20
        while not answers(address):
            assert time.monotonic() < ends
            time.sleep(0.05)
        assert "Hold to talk" in httpx.get(address).text
        for host in ("pi.local", f"10.0.0.7:{port}", f"localhost:{port}"):
            assert httpx.get(f"{address}/healthz", headers={"Host": host}).status_code == 200
        assert httpx.get(f"{address}/healthz", headers={"Host": "example.com"}).status_code == 403
    finally:
        process.kill()
        process.communicate()
