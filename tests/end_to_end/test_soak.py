"""Both servers under many clients for some seconds; `benchmarks/soak.py` does the same for hours."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import convert_tiny

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"


def test_servers_answer_everybody_as_they_answer_one_alone_and_do_not_grow(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    package = convert_tiny("int4-mixed", tmp_path_factory)
    command = [sys.executable, SOAK, "--minutes", "0.25", "--clients", "6", "--pause", "0.1", "--package", package]
    outcome = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert "Lost: 0." in outcome.stdout
    figures = dict(re.findall(r"\| (\S+: [a-z ]+) \| ([^|]+ \| [^|]+) \|", outcome.stdout))
    for name in ("HTTP", "Wyoming"):
        before, after = (int(value) for value in figures[f"{name}: open files"].split(" | "))
        # Connections of clients that are being answered.
        assert after <= before + 12
        before, after = (int(value.removesuffix(" MB")) for value in figures[f"{name}: resident"].split(" | "))
        assert after <= before + 60
