"""What is said of a process that a signal ends: SIGBUS is tested with real files in test_changed_packages.py."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

BEGIN = "import faulthandler, os, sys\nfrom cabochon.process_end import explain_crashes\nexplain_crashes('cabochon')\n"


def run(rest: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BEGIN + rest], capture_output=True, text=True, check=False)


def test_an_engine_that_gives_up_is_explained() -> None:
    result = run("os.abort()")
    assert result.returncode == -signal.SIGABRT
    (line,) = result.stderr.splitlines()
    assert line.startswith("cabochon: the engine ended the program")
    assert "memory" in line


def test_a_bug_is_shown_as_it_is() -> None:
    result = run("faulthandler._sigsegv()")
    assert result.returncode == -signal.SIGSEGV
    assert "Segmentation fault" in result.stderr
    assert 'File "<string>", line 4' in result.stderr


@pytest.mark.parametrize("rest", ["", "sys.exit(3)", "os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_nothing_is_said_of_other_ends(rest: str) -> None:
    assert run(rest).stderr == ""


def test_who_looks_after_crashes_already_is_left_alone() -> None:
    result = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", BEGIN + "os.abort()"], capture_output=True, text=True, check=False
    )
    assert "Fatal Python error: Aborted" in result.stderr
