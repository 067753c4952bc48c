"""Hours of clients: both servers of a package, asked at once by many, some of whom misbehave.

python benchmarks/soak.py [--minutes 60] [--clients 4] [--pause 0.5] [--package PACKAGE] [--seed N]

Without --package, models/tiny is converted. Every answer must be the one that was given at the beginning, alone; every
refusal must have the status that its reason asks for. Prints a table; exits with 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

import httpx
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient

from cabochon.machine import resident_memory

TINY = Path(__file__).resolve().parent.parent / "models" / "tiny"
SCRIPTS = Path(sys.executable).parent
PATIENCE = 120.0
SCHEMA = {"type": "object", "properties": {"answer": {"type": "string", "maxLength": 12}}, "required": ["answer"]}
BROKEN = (
    ("/v1/audio/transcriptions", b"nonsense"), ("/v1/chat/completions", b"{"), ("/nowhere", b"{}"),
    ("/v1/chat/completions", b'{"messages": 1}'), ("/v1/chat/completions", b'{"messages": ' + 9000 * b"["),
)  # fmt: skip
BUSY = (429, 503)
"""The line is full: the client is to come back."""


@dataclass(slots=True)
class Sample:
    """What a server is, some time after the beginning."""

    seconds: float
    resident: int
    """Bytes."""
    descriptors: int
    threads: int


@dataclass
class Soak:
    """What happened."""

    answered: Counter[str] = field(default_factory=Counter)
    busy: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    seconds: list[tuple[float, float]] = field(default_factory=list)
    """When each transcript began, after the beginning, and how long it took."""
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    """By server."""
    duration: float = 0.0


class Clients:
    """All that clients do, to two servers."""

    def __init__(self, address: str, wyoming_port: int, seed: int) -> None:
        self._address, self._wyoming_port, self._seed = address, wyoming_port, seed
        self._sounds = json.loads((TINY / "demo" / "references.json").read_text(encoding="utf-8"))
        self._expected: dict[str, str] = {}
        self._lock = threading.Lock()
        self.soak = Soak()

    def kinds(self) -> dict[str, Callable[[random.Random], None]]:
        """By the name that the table has."""
        return {
            "transcript": self._transcribe,
            "translation": self._translate,
            "chat, streamed": self._chat,
            "chat, in a form": self._chat_in_form,
            "left in the middle": self._leave,
            "not understood": self._send_nonsense,
            "Wyoming": self._speak,
            "Wyoming, left in the middle": self._fall_silent,
        }

    def learn(self) -> None:
        """What is answered to each of them alone."""
        chance = random.Random(self._seed)
        for _ in range(12):
            for act in self.kinds().values():
                act(chance)
        if self.soak.lost:
            raise SystemExit(f"answers differ before the soak begins: {self.soak.lost[0]}")
        self.soak = Soak()

    def run(self, number: int, until: float, pause: float, started: float) -> None:
        """A client, until that time on the monotonic clock."""
        chance = random.Random(self._seed + number)
        kinds = list(self.kinds().items())
        while time.monotonic() < until:
            name, act = chance.choice(kinds)
            began = time.monotonic()
            try:
                act(chance)
            except BusyError:
                self.soak.busy[name] += 1
            except (AssertionError, OSError, httpx.HTTPError, KeyError, ValueError, TimeoutError) as error:
                self.soak.lost.append(f"{name}: {type(error).__name__} {error}")
            else:
                with self._lock:
                    self.soak.answered[name] += 1
                    if name == "transcript":
                        self.soak.seconds.append((began - started, time.monotonic() - began))
            time.sleep(chance.uniform(0, 2 * pause))

    def _transcribe(self, chance: random.Random) -> None:
        sound = chance.choice(self._sounds)
        self._compare(f"transcript of {sound['file']}", self._hear("transcriptions", sound)["text"])

    def _translate(self, chance: random.Random) -> None:
        # The shape of OpenAI's API knows one target.
        sound = chance.choice([each for each in self._sounds if each["source"] != "en"])
        self._compare(f"translation of {sound['file']}", self._hear("translations", sound)["text"])

    def _hear(self, task: str, sound: dict[str, str]) -> dict[str, str]:
        files = {"file": (sound["file"], (TINY / "demo" / sound["file"]).read_bytes())}
        data = {"model": "any", "language": sound["source"]}
        return dict(
            _checked(httpx.post(f"{self._address}/v1/audio/{task}", files=files, data=data, timeout=PATIENCE)).json()
        )

    def _chat(self, chance: random.Random) -> None:
        question = self._question(chance)
        body = _chat_body(question, stream=True)
        text = ""
        with httpx.stream("POST", f"{self._address}/v1/chat/completions", json=body, timeout=PATIENCE) as answer:
            if answer.status_code != 200:
                answer.read()
            for line in _checked(answer).iter_lines():
                if line.startswith("data: {"):
                    choices = json.loads(line.removeprefix("data: "))["choices"]
                    text += choices[0]["delta"].get("content") or "" if choices else ""
        self._compare(f"answer to {question}", text)

    def _chat_in_form(self, chance: random.Random) -> None:
        question = self._question(chance)
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
        body = _chat_body(question) | {"response_format": form}
        found = _checked(httpx.post(f"{self._address}/v1/chat/completions", json=body, timeout=PATIENCE)).json()
        choice = found["choices"][0]
        text = choice["message"]["content"]
        assert choice["finish_reason"] == "length" or set(json.loads(text)) == {"answer"}, text
        self._compare(f"form for {question}", text)

    def _leave(self, chance: random.Random) -> None:
        body = _chat_body(self._question(chance), stream=True)
        with httpx.stream("POST", f"{self._address}/v1/chat/completions", json=body, timeout=PATIENCE) as answer:
            if answer.status_code != 200:
                answer.read()
            next(_checked(answer).iter_lines(), None)

    def _send_nonsense(self, chance: random.Random) -> None:
        path, body = chance.choice(BROKEN)
        answer = httpx.post(self._address + path, content=body, timeout=PATIENCE)
        assert 400 <= answer.status_code < 500, f"{answer.status_code} {answer.text[:100]}"
        assert answer.json()["error"]["message"]

    def _speak(self, chance: random.Random) -> None:
        sound = chance.choice(self._sounds)
        event = asyncio.run(self._wyoming(sound, share=1.0))
        if event is not None and not Transcript.is_type(event.type):
            if "busy" in str(event.data) or "wait" in str(event.data):
                raise BusyError
            raise AssertionError(f"{event.type} {event.data}")
        assert event is not None, "the connection ended"
        self._compare(f"Wyoming transcript of {sound['file']}", Transcript.from_event(event).text)

    def _fall_silent(self, chance: random.Random) -> None:
        asyncio.run(self._wyoming(chance.choice(self._sounds), share=chance.random()))

    async def _wyoming(self, sound: dict[str, str], share: float):  # type: ignore[no-untyped-def]
        """The server's answer to a sound; None to a client that leaves behind this share of it."""
        async with AsyncTcpClient("127.0.0.1", self._wyoming_port) as client:
            await client.write_event(Transcribe(language=sound["source"]).event())
            with wave.open(str(TINY / "demo" / sound["file"])) as file:
                shape = file.getframerate(), file.getsampwidth(), file.getnchannels()
                content = file.readframes(file.getnframes())
            await client.write_event(AudioStart(*shape).event())
            for start in range(0, round(share * len(content)), 8192):
                await client.write_event(AudioChunk(*shape, content[start : start + 8192]).event())
            if share < 1:
                return None
            await client.write_event(AudioStop().event())
            return await asyncio.wait_for(client.read_event(), PATIENCE)

    def _question(self, chance: random.Random) -> str:
        sound = chance.choice(self._sounds)
        return f"Translate the following text from English into German: {sound.get('en', 'Where is the station?')}"

    def _compare(self, what: str, found: str) -> None:
        with self._lock:
            expected = self._expected.setdefault(what, found)
        assert found == expected, f"{what} was {expected!r}, now it is {found!r}"


class BusyError(Exception):
    """A full line, as told by the server."""


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.status_code in BUSY:
        raise BusyError
    assert answer.status_code == 200, f"{answer.status_code} {answer.text[:200]}"
    return answer


def _chat_body(question: str, *, stream: bool = False) -> dict[str, object]:
    messages = [{"role": "user", "content": question}]
    return {"model": "any", "messages": messages, "temperature": 0, "max_tokens": 48, "stream": stream}


@contextmanager
def started(words: list[str], is_ready: Callable[[], object]) -> Iterator[subprocess.Popen[bytes]]:
    """A server, once it answers."""
    with subprocess.Popen([str(SCRIPTS / "cabochon"), *words], stderr=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + PATIENCE
            while True:
                try:
                    is_ready()
                    break
                except (OSError, httpx.TransportError):
                    if process.poll() is not None or time.monotonic() > until:
                        raise SystemExit(f"cabochon {' '.join(words)} does not answer") from None
                    time.sleep(0.1)
            yield process
            if process.poll() is not None:
                raise SystemExit(f"cabochon {words[0]} ended by itself with status {process.returncode}")
        finally:
            process.send_signal(signal.SIGTERM)


def soak(package: Path, minutes: float, clients: int, pause: float, seed: int) -> Soak:
    """Run both servers and their clients for so many minutes. Args: pause: seconds between requests, on average."""
    ports = _free_ports(2)
    address = f"http://127.0.0.1:{ports[0]}"
    with ExitStack() as stack:
        http = stack.enter_context(
            started(["serve", str(package), "--port", str(ports[0])], lambda: httpx.get(f"{address}/healthz"))
        )
        wyoming = stack.enter_context(
            started(["wyoming", str(package), "--port", str(ports[1])],
                    lambda: socket.create_connection(("127.0.0.1", ports[1])).close())
        )  # fmt: skip
        asked = Clients(address, ports[1], seed)
        asked.learn()
        beginning = time.monotonic()
        until = beginning + 60 * minutes
        threads = [
            threading.Thread(target=asked.run, args=(number, until, pause, beginning)) for number in range(clients)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for name, process in (("HTTP", http), ("Wyoming", wyoming)):
                asked.soak.samples.setdefault(name, []).append(_sample(process.pid, time.monotonic() - beginning))
            time.sleep(min(10.0, 6 * minutes))
        asked.soak.duration = time.monotonic() - beginning
        for thread in threads:
            thread.join()
    return asked.soak


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _sample(process: int, seconds: float) -> Sample:
    resident = resident_memory(str(process)).now or 0
    folder = Path(f"/proc/{process}")
    return Sample(seconds, resident, len(os.listdir(folder / "fd")), len(os.listdir(folder / "task")))  # noqa: PTH208


def table(found: Soak) -> str:
    """As Markdown."""
    lines = ["| request | answered | told to come back |", "|---|---:|---:|"]
    lines += [f"| {name} | {found.answered[name]:,} | {found.busy[name]:,} |" for name in sorted(found.answered)]
    lines.append(f"| all, in {found.duration / 60:.0f} minutes | {found.answered.total():,} | {found.busy.total():,} |")
    lines += ["", f"Lost: {len(found.lost)}.", "", "| | first tenth | last tenth |", "|---|---:|---:|"]
    for name, samples in found.samples.items():
        ends = [[each for each in samples if each.seconds <= found.duration / 10][-1], samples[-1]]
        for what, values in (
            ("resident", [f"{each.resident / 1e6:.0f} MB" for each in ends]),
            ("open files", [str(each.descriptors) for each in ends]),
            ("threads", [str(each.threads) for each in ends]),
        ):
            lines.append(f"| {name}: {what} | {values[0]} | {values[1]} |")
    first = [took for began, took in found.seconds if began <= found.duration / 10]
    last = [took for began, took in found.seconds if began >= 0.9 * found.duration]
    for what, pick in (("median", median), ("95th of 100", lambda values: quantiles(values, n=20)[-1])):
        if len(first) > 1 and len(last) > 1:
            lines.append(f"| a transcript, {what} | {pick(first):.2f} s | {pick(last):.2f} s |")
    return "\n".join(lines)


def main() -> int:
    """Exit status 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="(default: %(default)g)")
    parser.add_argument("--clients", type=int, default=4, help="at once (default: %(default)s)")
    parser.add_argument(
        "--pause", type=float, default=0.5, help="seconds between a client's requests (default: %(default)s)"
    )
    parser.add_argument("--package", type=Path, help="(default: models/tiny, converted)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        package = arguments.package
        if package is None:
            package = Path(folder) / "tiny"
            subprocess.run([SCRIPTS / "cabochon-convert", TINY, package], check=True, stdout=subprocess.DEVNULL)
        found = soak(package, arguments.minutes, arguments.clients, arguments.pause, arguments.seed)
    print(f"seed {arguments.seed}, {arguments.clients} clients\n\n{table(found)}")
    for each in found.lost[:20]:
        print(f"lost: {each}", file=sys.stderr)
    return 1 if found.lost else 0


if __name__ == "__main__":
    sys.exit(main())
