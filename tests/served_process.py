"""`cabochon serve` as a process of its own, to which things happen."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from pathlib import Path

import httpx
from commands import CABOCHON
from conftest import TINY

SENTENCE = TINY / "demo" / "english_unseen_voice.wav"
OTHER_SENTENCE = TINY / "demo" / "german_unseen_voice.wav"


class ServedProcess:
    """A server of a package; it ends with the block."""

    def __init__(self, package: Path, *options: str, **variables: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port: int = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        command = [CABOCHON, "serve", str(package), "--port", str(port), "--threads", "1", *options]
        environment = os.environ | variables
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)

    def __enter__(self) -> ServedProcess:
        ends = time.monotonic() + 60
        while not self.answers():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < ends
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def answers(self) -> bool:
        """Whether it can be reached."""
        try:
            return httpx.get(f"{self.address}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def hear(self, sound: Path = SENTENCE, language: str = "en") -> httpx.Response:
        """Ask what is said."""
        files = {"file": ("a.wav", sound.read_bytes())}
        place = f"{self.address}/v1/audio/transcriptions"
        return httpx.post(place, files=files, data={"language": language}, timeout=60)

    def chat(self, text: str, **options: object) -> httpx.Response:
        """Ask a question."""
        content = {"messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0, **options}
        return httpx.post(f"{self.address}/v1/chat/completions", json=content, timeout=60)

    def memory(self, name: str) -> int:
        """Bytes that Linux tells of the process: VmSize, VmRSS."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{name}:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    def ended(self) -> tuple[int, str]:
        """Wait for its end: exit status, or less than 0 for a signal, and what it said."""
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


def assert_server_error(answer: httpx.Response, *words: str) -> None:
    """Status 503 and one sentence with these words, in OpenAI's shape."""
    assert answer.status_code == 503, answer.text
    error = answer.json()["error"]
    assert error["type"] == "server_error"
    assert error["message"].endswith(".")
    assert "\n" not in error["message"]
    for word in words:
        assert word in error["message"], error["message"]
