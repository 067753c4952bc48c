"""Running the two console scripts as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(sys.executable).parent
CABOCHON = str(SCRIPTS / "cabochon")
CONVERT = str(SCRIPTS / "cabochon-convert")
TIMEOUT_SECONDS = 120


def run_command(*command: str | bytes | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with some more environment variables."""
    return subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def assert_refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit status 2, nothing on standard output, and exactly one sentence with these words on standard error."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("cabochon")
    assert result.stderr.endswith(".\n")
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def start_command(command: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """Start a command that can be interrupted: what a shell starts in the background is deaf to it, and so are its
    children."""
    hear = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    words = [sys.executable, "-c", hear, command, *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
