"""Processes that are killed, politely or not, at moments that nobody chose."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from commands import CABOCHON, CONVERT, run_command, start_command
from conftest import TINY
from served import wait_until
from served_process import SENTENCE, ServedProcess

import cabochon
from cabochon.package import open_package
from cabochon.whole_file import replace_text
from cabochon_convert.package import new_package

ROUNDS = 4


def kill_after(seconds: float, *command: str | Path, number: int = signal.SIGKILL, **variables: str) -> int:
    """Start a command and kill it; returns its exit status."""
    process = subprocess.Popen(
        [*map(str, command)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | variables,
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        return process.wait(60)


def moments(longest: float) -> list[float]:
    """When to kill: other moments at every run of the tests, noted by pytest where one fails."""
    return sorted(random.uniform(0.1, longest) for _ in range(ROUNDS))


def test_a_conversion_that_is_killed_leaves_the_old_package_or_the_new_one(package: Path, tmp_path: Path) -> None:
    target = Path(shutil.copytree(package, tmp_path / "package"))
    command = (CONVERT, TINY, target, "--recipe", "int8", "--replace")
    for seconds in moments(1.6):
        kill_after(seconds, *command)
        found = open_package(target, check_again=True).manifest.recipe.name
        assert found in ("int4-mixed", "int8"), seconds
    assert run_command(*map(str, command)).returncode == 0
    assert open_package(target, check_again=True).manifest.recipe.name == "int8"
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


def test_a_transcript_that_is_killed_again_and_again_becomes_what_it_would_have_become(
    package: Path, tmp_path: Path, long_sound: Path
) -> None:
    output, whole = tmp_path / "long.json", tmp_path / "whole.json"
    command = [CABOCHON, "transcribe", package, long_sound, "--longest", "2", "--threads", "1", "--output"]
    assert run_command(*command, whole).returncode == 0
    unfinished = tmp_path / "long.json.unfinished"
    kept = 0
    for seconds in moments(2.5):
        if kill_after(seconds, *command, output) == 0:
            break
        lines = len(unfinished.read_bytes().split(b"\n")) - 1 if unfinished.exists() else 0
        assert lines >= kept, "what was kept before was lost"
        kept = lines
    if not output.exists():
        result = run_command(*command, output)
        assert result.returncode == 0, result.stderr
        assert kept < 2 or "going on at" in result.stderr
    assert json.loads(output.read_text()) == json.loads(whole.read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.json", "whole.json"]


@pytest.mark.parametrize("engine", ["package", "tiny_litert_package"], ids=["onnx", "litert"])
def test_a_first_load_that_is_killed_is_made_up_for_by_the_next_start(
    engine: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    package = request.getfixturevalue(engine)
    expected = "".join(cabochon.load(package).transcribe(SENTENCE, "en"))
    for number, seconds in enumerate(moments(1.5)):
        cache = {"XDG_CACHE_HOME": str(tmp_path / str(number % 2))}
        command = (CABOCHON, "transcribe", package, SENTENCE, "--threads", "1")
        kill_after(seconds, *command, **cache)
        if number % 2:
            result = run_command(*map(str, command), **cache)
            assert (result.returncode, result.stdout.strip()) == (0, expected.strip()), (seconds, result.stderr)
    # What a killed process had begun to write goes with the next writing.
    left = [path for path in tmp_path.rglob(".*") if path.name.rpartition(".")[2].isdecimal()]
    assert all(str(path).startswith(str(tmp_path / "0")) for path in left)


def test_a_server_that_is_killed_while_it_answers_answers_again_when_it_is_started(package: Path) -> None:
    with ServedProcess(package) as server:
        expected = server.hear().json()
        killing = threading.Timer(0.3, server.process.kill)
        killing.start()
        with suppress(httpx.TransportError):
            while True:
                assert server.hear().json() == expected
        assert server.ended()[0] == -signal.SIGKILL
    with ServedProcess(package) as server:
        assert server.hear().json() == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_conversion_that_is_asked_to_end_tidies_up(tmp_path: Path, number: signal.Signals) -> None:
    # The tests themselves may have been started by nohup.
    undo = f"import os, signal, sys; signal.signal({int(number)}, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    words = [sys.executable, "-c", undo, CONVERT, TINY, tmp_path / "package"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.iterdir()):
        time.sleep(0.001)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    # A shell and systemd see which signal it was.
    assert process.returncode == -number
    assert errors == ""
    assert list(tmp_path.iterdir()) == []


def test_who_has_a_signal_ignored_is_not_disturbed_by_it(tmp_path: Path) -> None:
    """As nohup does, before somebody hangs up."""
    words = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", CONVERT, TINY, tmp_path / "package"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.iterdir()):
        time.sleep(0.001)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0
    assert open_package(tmp_path / "package")


def test_a_transcript_that_is_asked_to_end_says_how_to_go_on(package: Path, tmp_path: Path, long_sound: Path) -> None:
    output = tmp_path / "long.json"
    words = ["transcribe", str(package), str(long_sound), "--longest", "2", "--threads", "1", "--output", str(output)]
    process = start_command(CABOCHON, *words)
    unfinished = tmp_path / "long.json.unfinished"
    while not unfinished.exists() or unfinished.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        time.sleep(0.005)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert "the same command goes on from there" in errors
    assert "Traceback" not in errors
    assert run_command(CABOCHON, *words).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["long.json"]


def test_a_server_that_is_asked_to_end_while_it_answers_ends_cleanly(package: Path) -> None:
    with ServedProcess(package) as server:
        server.hear()
        threading.Timer(0.2, server.process.terminate).start()
        answer = server.chat("Hello", max_tokens=2000)
        status, errors = server.ended()
    assert answer.status_code in (200, 408, 500, 503)
    assert status == -signal.SIGTERM
    assert "Traceback" not in errors


def test_files_that_a_killed_writer_left_go_with_the_next_writing(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f".notes[1].txt.cabochon-{dead.pid}-0").write_text("half")
    others = {
        ".notes[1].txt.cabochon-1-0": "of a process that lives",
        f".other.txt.cabochon-{dead.pid}-0": "of another file",
        f".notes[1].txt.{dead.pid}": "the user's own",
        ".notes[1].txt.20240101": "the user's own",
    }
    for name, content in others.items():
        (tmp_path / name).write_text(content)
    replace_text(tmp_path / "notes[1].txt", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"notes[1].txt", *others}


def test_threads_that_write_the_same_file_at_once_all_succeed(tmp_path: Path) -> None:
    texts = [str(number) * 1000 for number in range(4)]
    with ThreadPoolExecutor(len(texts)) as pool:
        list(pool.map(lambda text: replace_text(tmp_path / "notes.txt", text), 25 * texts))
    assert (tmp_path / "notes.txt").read_text() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_tidying_up_is_not_interrupted_by_the_second_signal_that_ends_a_session(tmp_path: Path) -> None:
    begun, tidied = tmp_path / "begun", tmp_path / "tidied"
    work = (
        "import pathlib, sys, time\n"
        "from cabochon.process_end import Terminated, tidy_termination\n"
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "with tidy_termination():\n"
        "    try:\n"
        f"        pathlib.Path({str(begun)!r}).touch(); time.sleep(60)\n"
        "    except Terminated:\n"
        f"        pathlib.Path({str(begun)!r}).unlink(); time.sleep(1); pathlib.Path({str(tidied)!r}).touch()\n"
    )
    with subprocess.Popen([sys.executable, "-c", work]) as process:
        wait_until(begun.exists)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: not begun.exists())
        process.send_signal(signal.SIGHUP)
        assert process.wait(30) == 0
    assert tidied.exists()


def test_an_interrupted_replacement_never_leaves_a_folder_without_its_package(package: Path, tmp_path: Path) -> None:
    """The moment between two renames is the one that matters, and random kills rarely meet it."""
    target = Path(shutil.copytree(package, tmp_path / "package"))

    def convert() -> None:
        with new_package(target, replace=True) as beside:
            shutil.copytree(package, beside, dirs_exist_ok=True)

    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cabochon_convert.package.sync_folder", lambda _: seen.append(target.exists()))
        patch.setattr(Path, "rename", lambda *_: pytest.fail("two renames leave a moment without a package"))
        convert()
    assert seen == [True]
    assert open_package(target, check_again=True)
