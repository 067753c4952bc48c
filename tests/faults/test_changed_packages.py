"""What happens to a package while it is in use: it is replaced, cut, written to, deleted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from commands import CABOCHON, assert_refused, run_command
from conftest import TINY, convert_tiny
from served_process import OTHER_SENTENCE, SENTENCE, ServedProcess, assert_server_error

import cabochon
from cabochon.errors import PackageError
from cabochon.package import Package, open_package
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.recipes import RECIPES

QUESTION = "What is the capital of France?"
CUT_WHILE_RUNNING = """
import os, sys
import cabochon
from cabochon.process_end import explain_crashes
explain_crashes("cabochon")
model = cabochon.load(sys.argv[1], threads=1)
list(model.transcribe(sys.argv[2], "en"))
# Between the look at the files and the run, as a disk would that fails in the middle of an answer.
refuse, type(model.package).refuse_changed = type(model.package).refuse_changed, lambda _: None
os.truncate(sys.argv[3], 1000)
list(model.transcribe(sys.argv[2], "en"))
print("survived")
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_tiny("int4-mixed", tmp_path_factory)


@pytest.fixture
def package(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "package"))


@pytest.fixture
def litert_package(tiny_litert_package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_litert_package, tmp_path / "package"))


@pytest.fixture(params=["package", "litert_package"], ids=["onnx", "litert"])
def any_package(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def replace_with_other_weights(package: Path) -> None:
    """Put a package of the same file names into its place, whose weights are others."""
    convert_checkpoint(TINY, package, ConversionSettings(RECIPES["int8"], replace=True))


def texts(model: cabochon.Model) -> list[str]:
    return ["".join(model.transcribe(sound, language)) for sound, language in SOUNDS]


def open_in_between(folder: Path) -> Package | None:
    """A package that becomes another one again and again may be refused; it may not be half of each."""
    try:
        return open_package(folder)
    except PackageError as error:
        words = ("open it again", "was altered", "bytes long", "is missing", "cannot be read", "is a link")
        assert any(part in str(error) for part in words), error  # noqa: PT017 - either is right
    return None


SOUNDS = ((SENTENCE, "en"), (OTHER_SENTENCE, "de"))


def test_a_server_goes_on_with_the_package_that_it_loaded_when_that_is_replaced(package: Path, original: Path) -> None:
    old = texts(cabochon.load(original))
    with ServedProcess(package) as server:
        running: list[str] = []
        asking = threading.Thread(target=lambda: running.append(server.chat(QUESTION, max_tokens=200).text))
        asking.start()
        replace_with_other_weights(package)
        asking.join()
        # Its audio encoder was not loaded before: the files that have its names now are another package's.
        found = [server.hear(sound, language) for sound, language in SOUNDS]
        assert [answer.json()["text"] for answer in found] == [text.strip() for text in old]
        assert "completion" in running[0]
    assert [path.name for path in package.parent.iterdir()] == ["package"]
    with ServedProcess(package) as server:
        new = [server.hear(sound, language).json()["text"] for sound, language in SOUNDS]
    assert new == [text.strip() for text in texts(cabochon.load(package))]
    assert open_package(package).manifest.recipe.name == "int8"


def test_encoders_are_of_the_loaded_package_even_when_it_was_deleted(any_package: Path) -> None:
    expected = texts(cabochon.load(any_package))
    model = cabochon.load(any_package)
    shutil.rmtree(any_package)
    assert texts(model) == expected


@pytest.mark.parametrize("written", ["cut", "same size"])
def test_a_file_that_was_written_to_is_never_calculated_with(any_package: Path, written: str) -> None:
    model = cabochon.load(any_package)
    texts(model)
    graphs = (any_package / "decoder.onnx.data", any_package / "decoder.tflite")
    path = next(path for path in graphs if path.exists())
    with path.open("r+b") as file:
        if written == "cut":
            file.truncate(path.stat().st_size // 2)
        else:
            file.seek(path.stat().st_size // 2)
            file.write(b"\xff" * 1000)
    for _ in range(2):
        with pytest.raises(PackageError, match=f"{path.name} was changed while it was in use"):
            texts(model)


def test_a_file_that_was_only_touched_is_no_reason_to_stop(package: Path) -> None:
    model = cabochon.load(package)
    expected = texts(model)
    for path in package.iterdir():
        os.utime(path, (1, 1))
    assert texts(model) == expected


def test_a_server_whose_package_is_cut_says_so_and_the_next_start_refuses_it(package: Path) -> None:
    with ServedProcess(package) as server:
        before = server.hear().json()["text"]
        with (package / "decoder.onnx.data").open("r+b") as file:
            whole = file.read()
            file.truncate(1000)
        assert_server_error(server.hear(), "decoder.onnx.data", "changed while it was in use")
        assert_server_error(server.chat(QUESTION), "decoder.onnx.data")
        assert server.answers()
    assert_refused(run_command(CABOCHON, "serve", package), "decoder.onnx.data", "1000 bytes long", "copy")
    (package / "decoder.onnx.data").write_bytes(whole)
    with ServedProcess(package) as server:
        assert server.hear().json()["text"] == before


@pytest.mark.parametrize("engine", ["package", "litert_package"])
def test_a_process_that_loses_mapped_bytes_in_the_middle_of_a_run_says_so(
    engine: str, request: pytest.FixtureRequest
) -> None:
    package = request.getfixturevalue(engine)
    cut = package / ("decoder.onnx.data" if engine == "package" else "audio_encoder.tflite")
    result = run_command(sys.executable, "-c", CUT_WHILE_RUNNING, package, SENTENCE, cut)
    assert result.returncode == -signal.SIGBUS
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("cabochon: ")
    assert "cut or cannot be read" in line
    assert "--check" in line
    assert_refused(run_command(CABOCHON, "info", package, "--check"), cut.name, "copy the package again")


def test_a_package_that_changes_while_it_is_opened_is_never_half_of_each(original: Path, tmp_path: Path) -> None:
    folder = tmp_path / "package"
    shutil.copytree(original, folder)
    other = tmp_path / "other"
    convert_checkpoint(TINY, other, ConversionSettings(RECIPES["int8"]))
    expected = [open_package(path).manifest for path in (folder, other)]
    exchange = (
        "import sys, time; from pathlib import Path; from cabochon_convert.folder_exchange import exchange_folders\n"
        "print(flush=True)\n"
        "while exchange_folders(Path(sys.argv[1]), Path(sys.argv[2])): time.sleep(0.25)"
    )
    with subprocess.Popen([sys.executable, "-c", exchange, folder, other], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            opened = [package for _ in range(15) if (package := open_in_between(folder))]
            for package in opened:
                assert package.manifest in expected
                for record in package.manifest.files:
                    assert package.path(record.path).stat().st_size == record.size
            assert opened
        finally:
            process.kill()
