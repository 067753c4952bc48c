"""Programs that are measured against each other: each lives in a process of its own and does what a line asks it.

Commands: `prefill N`, `decode N` and `hear FILE N`, as llama_cpp_worker.cpp describes them; answers are lines of JSON.
`fill N` is a prefill that leaves out the logits.
A process is stopped while another one works, so that what spins or tidies up in one does not slow the other.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any


class Worker:
    """One program. Use it as a context manager."""

    def __init__(self, name: str, command: Sequence[str | Path]) -> None:
        self.name = name
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.load_seconds: float = self._read()["load_seconds"]
        self._pause()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait()

    def prefill(self, positions: int) -> float:
        """Forget everything and run so many random tokens: seconds."""
        seconds: float = self._ask(f"prefill {positions}")["seconds"]
        return seconds

    def fill(self, positions: int) -> float:
        """The same without logits, of workers that can: seconds."""
        seconds: float = self._ask(f"fill {positions}")["seconds"]
        return seconds

    def decode(self, tokens: int) -> list[float]:
        """Run so many random tokens one by one: seconds of each."""
        each: list[float] = self._ask(f"decode {tokens}")["each"]
        return each

    def hear(self, samples: Path, tokens: int) -> dict[str, float]:
        """Answer a sound (float32 samples) with so many tokens: seconds in all, and of its decoding; positions."""
        heard: dict[str, float] = self._ask(f"hear {samples} {tokens}")
        return heard

    def resident(self) -> dict[str, int]:
        """Bytes: VmRSS now, VmHWM at most so far, RssAnon of it in no file."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        fields = (line.split() for line in lines if line.startswith(("VmRSS", "VmHWM", "RssAnon")))
        return {name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes, _ in fields}

    def _ask(self, line: str) -> dict[str, Any]:
        self._process.send_signal(signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._read()
        self._pause()
        return answer

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _pause(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)
