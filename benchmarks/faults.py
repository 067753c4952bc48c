"""Many faults at random moments: what was lost, and what was said.

python benchmarks/faults.py [--minutes 5] [--seed N] [--litert PACKAGE]

Works on models/tiny, which it converts. Kinds of faults take turns until the time is over; then a table is printed:
faults of each kind, those after which the command had not finished yet, and those that cost something: a package or a
part of a transcript that was there and is not, an answer that differs, an error without a sentence. Exits with 1 if any
did.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import soundfile

from cabochon.errors import CabochonError
from cabochon.package import open_package

TINY = Path(__file__).resolve().parent.parent / "models" / "tiny"
SOUND = TINY / "demo" / "english_unseen_voice.wav"
SCRIPTS = Path(sys.executable).parent
CABOCHON, CONVERT = str(SCRIPTS / "cabochon"), str(SCRIPTS / "cabochon-convert")
LIMITED = (
    "import os, resource, sys; kind, size = sys.argv[1:3]; "
    "resource.setrlimit(getattr(resource, kind), (int(size),) * 2); os.execv(sys.argv[3], sys.argv[3:])"
)


@dataclass
class Kind:
    """Faults of one kind."""

    name: str
    inject: Callable[[], bool]
    """Returns whether the fault was felt; AssertionError where something was lost."""
    faults: int = 0
    felt: int = 0
    lost: list[str] = field(default_factory=list)

    def turn(self) -> None:
        """One more fault."""
        self.faults += 1
        try:
            self.felt += self.inject()
        except (AssertionError, CabochonError) as error:
            self.lost.append(str(error))


class Faults:
    """Every kind, in a folder of its own."""

    def __init__(self, folder: Path, chance: random.Random, litert: Path | None) -> None:
        self._folder, self._chance = folder, chance
        self._packages = {recipe: self._convert(recipe) for recipe in ("int4-mixed", "int8")}
        if litert is not None:
            self._packages["litert"] = litert
        (folder / "full").mkdir()
        self._long = folder / "long.wav"
        waveform, rate = soundfile.read(SOUND, dtype="float32")
        soundfile.write(self._long, np.tile(np.concatenate([waveform, np.zeros(rate, np.float32)]), 20), rate)
        self._answers = {name: self._transcribe(package) for name, package in self._packages.items()}
        self._whole = self._go_through(folder / "whole.json")

    def kinds(self) -> list[Kind]:
        """In the order of their turns."""
        kinds = [
            Kind("conversion killed (SIGKILL), replacing a package", lambda: self._kill_conversion(signal.SIGKILL)),
            Kind("conversion ended (SIGTERM)", lambda: self._kill_conversion(signal.SIGTERM)),
            Kind("conversion on a disk that fills up", self._fill_disk),
            Kind("transcript killed (SIGKILL), until it is done", self._kill_transcript),
            Kind("first load killed (SIGKILL), onnxruntime", lambda: self._kill_first_load("int4-mixed")),
            Kind("too little memory, onnxruntime", lambda: self._limit_memory("int4-mixed")),
            Kind("server killed (SIGKILL) while it answers", self._kill_server),
            Kind("package replaced while it is served", self._replace_served),
            Kind("package cut while it is in use", self._cut),
        ]
        if "litert" in self._packages:
            kinds.append(Kind("first load killed (SIGKILL), LiteRT", lambda: self._kill_first_load("litert")))
            kinds.append(Kind("too little memory, LiteRT", lambda: self._limit_memory("litert")))
        return kinds

    def _kill_conversion(self, number: int) -> bool:
        recipe = self._chance.choice(["int8", "int4-mixed"])
        target = self._folder / f"converted-{number}" / "package"
        if not target.exists():
            shutil.copytree(self._packages["int8"], target)
        words = [CONVERT, TINY, target, "--recipe", recipe, "--replace"]
        felt = _kill_after(self._chance.uniform(0.05, 1.6), number, *words)
        assert open_package(target, check_again=True).manifest.recipe.name in ("int8", "int4-mixed")
        left = [path.name for path in target.parent.iterdir() if path != target]
        assert len(left) <= 1, f"what killed conversions left is not cleaned up: {left}"
        if number == signal.SIGTERM:
            assert not left, f"SIGTERM left {left}"
        return felt

    def _fill_disk(self) -> bool:
        place = self._folder / "full" / "package"
        size = self._chance.randrange(1000, 4_000_000)
        command = [sys.executable, "-c", LIMITED, "RLIMIT_FSIZE", size, CONVERT, TINY, place]
        result = _run(*command)
        if result.returncode:
            _assert_said(result)
            assert not list(place.parent.iterdir()), "a full disk left something"
            return True
        open_package(place, check_again=True)
        shutil.rmtree(place)
        return False

    def _kill_transcript(self) -> bool:
        output = self._folder / "transcript" / "long.json"
        output.parent.mkdir(exist_ok=True)
        unfinished = output.with_name("long.json.unfinished")
        before = unfinished.read_bytes().count(b"\n") if unfinished.exists() else 0
        felt = _kill_after(self._chance.uniform(0.3, 2.5), signal.SIGKILL, *self._going_through(output))
        if output.exists():
            assert json.loads(output.read_text())["parts"] == self._whole, "the transcript differs"
            assert sorted(path.name for path in output.parent.iterdir()) in (
                ["long.json"], ["long.json", "long.json.unfinished"],
            )  # fmt: skip
            shutil.rmtree(output.parent)
        else:
            after = unfinished.read_bytes().count(b"\n") if unfinished.exists() else 0
            assert after >= before, "parts were lost"
        return felt

    def _kill_first_load(self, name: str) -> bool:
        package = self._packages[name]
        with tempfile.TemporaryDirectory(dir=self._folder) as cache:
            words = [CABOCHON, "transcribe", package, SOUND, "--threads", "1"]
            felt = _kill_after(self._chance.uniform(0.1, 1.6), signal.SIGKILL, *words, XDG_CACHE_HOME=cache)
            assert self._transcribe(package, XDG_CACHE_HOME=cache) == self._answers[name], "the answer differs"
        return felt

    def _limit_memory(self, name: str) -> bool:
        package = self._packages[name]
        size = self._chance.randrange(190, 320) << 20
        words = [CABOCHON, "transcribe", package, SOUND, "--threads", "1"]
        result = _run(sys.executable, "-c", LIMITED, "RLIMIT_AS", size, *words, OPENBLAS_NUM_THREADS="1")
        if result.returncode == 0:
            assert result.stdout == self._answers[name], "the answer differs"
            return False
        _assert_said(result)
        assert self._transcribe(package) == self._answers[name], "the answer differs"
        return True

    def _kill_server(self) -> bool:
        with self._served(self._packages["int4-mixed"]) as (process, ask):
            threading.Timer(self._chance.uniform(0, 0.5), process.kill).start()
            while (answer := ask()) is not None:
                assert answer == self._answers["int4-mixed"].strip(), "the answer differs"
            process.wait()
        return True

    def _replace_served(self) -> bool:
        place = self._folder / "served" / "package"
        shutil.rmtree(place.parent, ignore_errors=True)
        shutil.copytree(self._packages["int4-mixed"], place)
        with self._served(place) as (_, ask):
            if self._chance.random() < 0.5:
                assert ask() == self._answers["int4-mixed"].strip()
            result = _run(CONVERT, TINY, place, "--recipe", "int8", "--replace")
            assert result.returncode == 0, result.stderr
            assert ask() == self._answers["int4-mixed"].strip(), "an answer of two packages"
        assert self._transcribe(place) == self._answers["int8"], "the new package is not served"
        return True

    def _cut(self) -> bool:
        place = self._folder / "cut" / "package"
        shutil.rmtree(place.parent, ignore_errors=True)
        shutil.copytree(self._packages["int4-mixed"], place)
        victim = self._chance.choice(sorted(place.glob("*.data")))
        words = [CABOCHON, "transcribe", place, self._long, "--threads", "1"]
        process = subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(self._chance.uniform(0.8, 2.5))
        with victim.open("r+b") as file:
            file.truncate(self._chance.randrange(victim.stat().st_size))
        output, errors = process.communicate()
        result = subprocess.CompletedProcess(words, process.returncode, output, errors)
        if result.returncode:
            _assert_said(result)
        result = _run(*words)
        _assert_said(result)
        return process.returncode != 0

    def _convert(self, recipe: str) -> Path:
        result = _run(CONVERT, TINY, self._folder / recipe, "--recipe", recipe)
        assert result.returncode == 0, result.stderr
        return self._folder / recipe

    def _transcribe(self, package: Path, **variables: str) -> str:
        result = _run(CABOCHON, "transcribe", package, SOUND, "--threads", "1", **variables)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def _going_through(self, output: Path) -> list[str | Path]:
        package = self._packages["int4-mixed"]
        return [CABOCHON, "transcribe", package, self._long, "--longest", "2", "--threads", "1", "--output", output]

    def _go_through(self, output: Path) -> object:
        result = _run(*self._going_through(output))
        assert result.returncode == 0, result.stderr
        return json.loads(output.read_text())["parts"]

    @contextmanager
    def _served(self, package: Path) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str | None]]]:
        address = f"http://127.0.0.1:{8700 + self._chance.randrange(200)}"
        command = [CABOCHON, "serve", package, "--threads", "1", "--port", address.rpartition(":")[2]]
        process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)

        def ask() -> str | None:
            try:
                files = {"file": ("a.wav", SOUND.read_bytes())}
                answer = httpx.post(f"{address}/v1/audio/transcriptions", files=files, timeout=60)
                return str(answer.json()["text"])
            except httpx.TransportError:
                return None

        try:
            while process.poll() is None:
                try:
                    httpx.get(f"{address}/healthz")
                    break
                except httpx.TransportError:
                    time.sleep(0.02)
            yield process, ask
        finally:
            process.kill()
            process.wait()


def _kill_after(seconds: float, number: int, *command: object, **variables: str) -> bool:
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | variables
    )
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        return process.wait() == -number


def _run(*command: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=os.environ | variables, check=False
    )


def _assert_said(result: subprocess.CompletedProcess[str]) -> None:
    """One sentence at the end, and no traceback; libraries that give up say something before."""
    assert "Traceback" not in result.stderr, result.stderr[-300:]
    if "OpenBLAS error: Memory allocation" in result.stderr:
        return  # NumPy's library ends the process itself, with a sentence of its own
    assert result.returncode in (2, -signal.SIGABRT, -signal.SIGBUS), f"{result.returncode}: {result.stderr[-300:]}"
    assert result.stderr.splitlines()[-1].startswith("cabochon"), result.stderr[-300:]


def main() -> int:
    """Inject, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--litert", type=Path, metavar="PACKAGE", help="models/tiny converted with --target litert")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(f"seed {arguments.seed}, {arguments.minutes:g} minutes", flush=True)
    ends = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        kinds = Faults(Path(folder), random.Random(arguments.seed), arguments.litert).kinds()
        while time.monotonic() < ends:
            for kind in kinds:
                if time.monotonic() < ends:
                    kind.turn()
    print(f"| {'fault':50} | injected | ended the command | lost |\n|{'-' * 52}|---:|---:|---:|")
    for kind in kinds:
        print(f"| {kind.name:50} | {kind.faults:8} | {kind.felt:17} | {len(kind.lost):4} |")
    print(f"| {'all':50} | {sum(kind.faults for kind in kinds):8} | {sum(kind.felt for kind in kinds):17} ", end="")
    print(f"| {sum(len(kind.lost) for kind in kinds):4} |")
    for kind in kinds:
        for reason in kind.lost:
            print(f"{kind.name}: {reason}", file=sys.stderr)
    return 1 if any(kind.lost for kind in kinds) else 0


if __name__ == "__main__":
    sys.exit(main())
