"""A clock that jumps, as that of a Raspberry Pi does when it finds a network: it has none of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from commands import CABOCHON, run_command
from served_process import SENTENCE, ServedProcess

YEARS = 5 * 365 * 86400


def test_the_fault_is_real(faulty_calls: Path) -> None:
    script = "import time; print(abs(time.time() - time.time()), abs(time.monotonic() - time.monotonic()))"
    environment = os.environ | {"LD_PRELOAD": str(faulty_calls), "JUMPING_CLOCK": "1"}
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    wall, monotonic = map(float, found.stdout.split())
    assert wall > YEARS
    assert monotonic < 60


def test_a_server_answers_in_time_whatever_the_clock_says(package: Path, faulty_calls: Path) -> None:
    with ServedProcess(package) as server:
        expected = server.hear().json()
    limits = ("--time-limit", "30", "--queue", "2")
    with ServedProcess(package, *limits, LD_PRELOAD=str(faulty_calls), JUMPING_CLOCK="1") as server:
        for _ in range(3):
            assert server.hear().json() == expected
        assert server.chat("Hello").status_code == 200


def test_commands_and_their_caches_do_not_depend_on_the_clock(
    package: Path, faulty_calls: Path, tmp_path: Path
) -> None:
    jumps = {"LD_PRELOAD": str(faulty_calls), "JUMPING_CLOCK": "1"}
    texts = []
    for variables in (jumps, {}, jumps):
        command = (CABOCHON, "transcribe", package, SENTENCE, "--threads", "1", "--json")
        result = run_command(*command, XDG_CACHE_HOME=str(tmp_path / "cache"), **variables)
        assert (result.returncode, result.stderr) == (0, "")
        found = json.loads(result.stdout)
        texts.append(found["transcript"])
        statistics = found["statistics"]
        assert all(0 <= value < 600 for name, value in statistics.items() if name.endswith("_seconds"))
    assert "oysters" in texts[0]
    assert len(set(texts)) == 1
