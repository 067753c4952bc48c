"""What engines write, and to whom."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SOUND = Path(__file__).parents[2] / "models" / "tiny" / "demo" / "german_unseen_voice.wav"
ANSWER = """
import sys
import cabochon
print("".join(cabochon.load(sys.argv[1]).transcribe(sys.argv[2], "German")))
"""


def run(folder: Path, *words: str) -> str:
    """What Python prints for a user whose home is this folder."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, *words], env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def test_looking_for_engines_writes_nothing(tmp_path: Path) -> None:
    found = run(tmp_path, "-c", "from cabochon.cli import main; main(['doctor'])")
    assert "onnxruntime" in found
    assert [path.name for path in (tmp_path / "cache").glob("*") if path.name != "cabochon"] == []


def test_nothing_but_our_own_cache_is_written_for_a_user_who_only_asks(tiny_package: Path, tmp_path: Path) -> None:
    found = run(tmp_path, "-c", ANSWER, str(tiny_package), str(SOUND))
    assert found == "Der Cocktail kostet 38 Euro.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["cabochon"]
