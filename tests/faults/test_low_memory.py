"""Too little memory, as the system's limit of a process gives it: a sentence, nothing damaged, and it works later."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

import pytest
from commands import CABOCHON, CONVERT, run_command
from conftest import TINY
from served_process import SENTENCE, ServedProcess, assert_server_error

from cabochon.package import open_package

WITH_LIMIT = (
    "import os, resource, sys; "
    "resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]) << 20,) * 2); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)
SENTENCES = ("memory", "cannot load")
"""LiteRT does not say why it cannot load a file."""
PEAK = (
    "import resource, sys, cabochon; list(cabochon.load(sys.argv[1], threads=1).transcribe(sys.argv[2], 'en'))\n"
    "print(open('/proc/self/status').read())"
)


def run_with_memory(megabytes: int, *command: str | Path, **variables: str) -> tuple[int, str, str]:
    variables |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    result = run_command(sys.executable, "-c", WITH_LIMIT, str(megabytes), *command, **variables)
    return result.returncode, result.stdout, result.stderr


def peak_megabytes(status: str) -> int:
    """Of address space, by a /proc/self/status."""
    return int(re.findall(r"VmPeak:\s+(\d+) kB", status)[0]) // 1024


def assert_said(status: int, errors: str) -> None:
    """A sentence of ours is the last that was said; where an engine gave up (SIGABRT) its own words come before it."""
    assert "Traceback" not in errors
    last = errors.splitlines()[-1]
    if last.startswith("OpenBLAS error: Memory allocation"):
        # NumPy's library ends the process itself.
        assert status == 1
        return
    assert status in (2, -6), errors
    assert last.startswith("cabochon"), errors
    assert any(word in last for word in SENTENCES), errors


@pytest.mark.parametrize("engine", ["package", "tiny_litert_package"], ids=["onnx", "litert"])
def test_a_command_that_runs_out_of_memory_says_so_and_damages_nothing(
    engine: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    package = request.getfixturevalue(engine)
    command = (CABOCHON, "transcribe", package, SENTENCE, "--threads", "1")
    peak = run_command(sys.executable, "-c", PEAK, package, SENTENCE, OPENBLAS_NUM_THREADS="1").stdout
    needed = peak_megabytes(peak)
    cache = {"XDG_CACHE_HOME": str(tmp_path)}
    outcomes = set()
    for share in (0.8, 0.87, 0.93, 0.97):
        status, output, errors = run_with_memory(int(needed * share), *command, **cache)
        outcomes.add(status)
        if status == 0:
            assert "oysters" in output
        else:
            assert_said(status, errors)
    assert outcomes - {0}, "no limit was low enough to be felt"
    result = run_command(*map(str, command), **cache)
    assert result.returncode == 0, result.stderr
    assert "oysters" in result.stdout
    assert open_package(package, check_again=True)


def test_a_conversion_that_runs_out_of_memory_leaves_nothing(tmp_path: Path) -> None:
    script = "import cabochon_convert.cli, cabochon_convert.convert; print(open('/proc/self/status').read())"
    least = peak_megabytes(run_command(sys.executable, "-c", script, OPENBLAS_NUM_THREADS="1").stdout)
    outcomes = set()
    command = (CONVERT, TINY, tmp_path / "package", "--recipe", "float")
    for more in (2, 6, 12, 40):
        status, _, errors = run_with_memory(least + more, *command, "--replace")
        outcomes.add(status)
        if status:
            assert_said(status, errors)
        else:
            assert open_package(tmp_path / "package", check_again=True)
    assert outcomes - {0}, "no limit was low enough to be felt"
    assert run_command(*map(str, command), "--replace").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


@pytest.mark.parametrize("engine", ["package", "tiny_litert_package"], ids=["onnx", "litert"])
def test_a_server_that_runs_out_of_memory_answers_503_and_goes_on(engine: str, request: pytest.FixtureRequest) -> None:
    package = request.getfixturevalue(engine)
    expected = run_command(CABOCHON, "transcribe", package, SENTENCE, "--threads", "1").stdout.strip()
    with ServedProcess(package, OPENBLAS_NUM_THREADS="1") as server:
        before = server.chat("Hello").json()["choices"]
        unlimited = resource.prlimit(server.process.pid, resource.RLIMIT_AS)
        # Nothing more: the audio encoder is loaded at the first sound.
        resource.prlimit(server.process.pid, resource.RLIMIT_AS, (server.memory("VmSize"), unlimited[1]))
        assert_server_error(server.hear(), "memory ran out")
        assert server.answers()
        resource.prlimit(server.process.pid, resource.RLIMIT_AS, unlimited)
        assert server.hear().json()["text"] == expected
        assert server.chat("Hello").json()["choices"] == before
