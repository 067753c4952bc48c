"""Disks that are full: a sentence, nothing half written, and the same command works when there is room."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from commands import CABOCHON, CONVERT, assert_refused, run_command
from conftest import TINY
from served_process import SENTENCE, ServedProcess, assert_server_error

SmallDisk = Callable[[str], list[str | Path]]
LISTING = '"$@"; status=$?; find . -type f ! -name checked-files.json >&3; exit $status'
FILL_THEN_FREE = """
"$1" transcribe "$2" "$3" --longest 2 --threads 1 --output long.json; echo $? >&3
ls long.json* >&3; wc -l < long.json.unfinished >&3
mount -o remount,size=1m . && "$1" transcribe "$2" "$3" --longest 2 --threads 1 --output long.json; echo $? >&3
cat long.json >&3
"""


def run_and_list(begin: list[str | Path], *command: str | Path) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run a command on a small disk; also returns the files that it left there."""
    words = [*begin, "sh", "-c", f"exec 3>&1 1>&2; {LISTING}", "sh", *command]
    result = run_command(*words)
    left, result.stdout = result.stdout.split(), ""
    return result, left


@pytest.mark.parametrize("size", ["200k", "1m", "6m"])
def test_a_conversion_to_a_full_disk_leaves_nothing(small_disk: SmallDisk, size: str) -> None:
    result, left = run_and_list(small_disk(size), CONVERT, TINY, "package")
    assert_refused(result, "package", "full", "free some space")
    assert left == []


def test_a_package_that_cannot_be_replaced_for_want_of_room_stays(small_disk: SmallDisk, package: Path) -> None:
    copy = f"cp -r '{package}' package && exec \"$@\""
    result, left = run_and_list(small_disk("10m"), "sh", "-c", copy, "sh", CONVERT, TINY, "package", "--replace")
    assert_refused(result, "full")
    assert sorted(left) == sorted(f"./package/{path.name}" for path in package.iterdir())


def test_a_bundle_on_a_full_disk_leaves_nothing(small_disk: SmallDisk, tiny_litert_package: Path) -> None:
    result, left = run_and_list(small_disk("2m"), CONVERT, "litertlm", tiny_litert_package, "a.litertlm")
    assert_refused(result, "a.litertlm", "full")
    assert left == []


def test_a_transcript_goes_on_when_there_is_room_again(
    small_disk: SmallDisk, package: Path, long_sound: Path, tmp_path: Path
) -> None:
    waveform, rate = soundfile.read(long_sound, dtype="float32")
    longer = tmp_path / "longer.wav"
    soundfile.write(longer, np.tile(waveform, 3), rate)
    words = ["sh", "-c", f"exec 3>&1 1>&2; {FILL_THEN_FREE}", "sh", CABOCHON, package, longer]
    # The parts need more than one page.
    result = run_command(*small_disk("4k"), *words)
    first, listed, kept, second, *output = result.stdout.splitlines()
    assert (first, second) == ("2", "0"), result.stderr
    assert listed == "long.json.unfinished"
    assert int(kept) > 5
    assert "No space left on device" in result.stderr
    assert "going on at" in result.stderr
    assert "Traceback" not in result.stderr
    assert "\n".join(output).count("oysters") > 15


def test_where_no_weights_can_be_kept_the_first_load_only_takes_longer(
    small_disk: SmallDisk, tiny_litert_package: Path
) -> None:
    for size in ("64k", "1m", "3m"):
        script = 'mkdir home && XDG_CACHE_HOME="$PWD/home" "$@" && find . -name "*.weights" -size +0 >&2'
        command = ["sh", "-c", script, "sh", CABOCHON, "transcribe", tiny_litert_package, SENTENCE, "--threads", "1"]
        result = run_command(*small_disk(size), *command)
        assert result.returncode == 0, result.stderr
        assert "oysters" in result.stdout


def test_a_server_that_cannot_store_a_sound_says_so_and_goes_on(package: Path) -> None:
    with ServedProcess(package) as server:
        before = server.hear().text
        limits = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        assert_server_error(server.hear(), "File too large", "disk")
        # So large that it is stored while it is received.
        large = SENTENCE.with_name("english_unseen_voice.wav").read_bytes() * 20
        answer = httpx.post(f"{server.address}/v1/audio/transcriptions", files={"file": ("a.wav", large)}, timeout=60)
        assert_server_error(answer, "disk")
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limits)
        assert server.hear().text == before
