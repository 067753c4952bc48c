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


def test_nothing_but_our_own_cache_is_written_for_a_user_who_only_asks(tiny_package: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", ANSWER, str(tiny_package), str(SOUND)]
    found = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert found == "Der Cocktail kostet 38 Euro.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["cabochon"]
