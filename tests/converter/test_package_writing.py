from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import CABOCHON, CONVERT, assert_refused, run_command
from refusals import refused

from cabochon.package import open_package
from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.package import new_package
from cabochon_convert.recipes import RECIPES
from cabochon_convert.work_folder import OutputError

LIMIT_FILE_SIZE = (
    "import os, resource, sys; "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_tokenizer_loses_its_white_space_and_nothing_else(random_checkpoint: Path, random_package: Path) -> None:
    written = (random_checkpoint / "tokenizer.json").read_text(encoding="utf-8")
    packed = (random_package / "tokenizer.json").read_text(encoding="utf-8")
    assert json.loads(packed) == json.loads(written)
    assert len(packed) < 0.7 * len(written)


@pytest.fixture
def existing(random_package: Path, tmp_path: Path) -> Path:
    """A package that stands where a conversion wants to write."""
    return Path(shutil.copytree(random_package, tmp_path / "package"))


def test_a_package_appears_whole_and_alone(tmp_path: Path) -> None:
    with new_package(tmp_path / "deep" / "package", replace=False) as beside:
        (beside / "file").write_text("content")
        assert not (tmp_path / "deep" / "package").exists()
    assert names_in(tmp_path / "deep") == ["package"]
    assert names_in(tmp_path / "deep" / "package") == ["file"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, MemoryError])
def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    def convert() -> None:
        with new_package(tmp_path / "package", replace=False) as beside:
            (beside / "file").write_text("content")
            raise failure

    with pytest.raises(failure):
        convert()
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said_and_nothing_is_left(tmp_path: Path, code: int) -> None:
    with (
        refused(OutputError, "package", "full"),
        new_package(tmp_path / "package", replace=False) as beside,
    ):
        (beside / "file").write_text("content")
        raise OSError(code, os.strerror(code), str(beside / "file"))
    assert names_in(tmp_path) == []


def test_a_disk_that_turns_out_full_when_files_are_forced_onto_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with refused(OutputError, "full"), new_package(tmp_path / "package", replace=False) as beside:
        (beside / "file").write_text("content")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("limit", [1000, 40_000, 500_000, 1_850_000])
def test_a_conversion_whose_disk_fills_up_leaves_nothing(random_checkpoint: Path, tmp_path: Path, limit: int) -> None:
    arguments = (CONVERT, random_checkpoint, tmp_path / "package", "--recipe", "float")
    result = run_command(sys.executable, "-c", LIMIT_FILE_SIZE, str(limit), *arguments)
    assert_refused(result, "package", "full")
    assert names_in(tmp_path) == []


def test_an_existing_package_is_kept_unless_it_may_be_replaced(existing: Path) -> None:
    with refused(OutputError, "exists already", "--replace"), new_package(existing, replace=False):
        pytest.fail("the block must not run")
    open_package(existing)
    with new_package(existing, replace=True) as beside:
        (beside / "manifest.json").write_text("new")
    assert names_in(existing) == ["manifest.json"]
    assert names_in(existing.parent) == ["package"]


def test_an_existing_package_survives_a_replacement_that_fails(existing: Path) -> None:
    with refused(OutputError, "full"), new_package(existing, replace=True):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    open_package(existing)
    assert names_in(existing.parent) == ["package"]


@pytest.mark.parametrize("replace", [False, True])
def test_what_is_not_a_package_is_never_replaced(tmp_path: Path, replace: bool) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "photo.jpg").write_text("precious")
    for name in ("file", "folder"):
        with refused(OutputError, name, "not a package"), new_package(tmp_path / name, replace=replace):
            pytest.fail("the block must not run")
    assert names_in(tmp_path) == ["file", "folder"]
    assert names_in(tmp_path / "folder") == ["photo.jpg"]


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "package", tmp_path / ("x" * 300), Path("/proc/package")):
        with refused(OutputError, "cannot be written"), new_package(folder, replace=False):
            pytest.fail("the block must not run")


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    folder = tmp_path / "package"
    folder.mkdir()
    with new_package(folder, replace=False) as beside:
        (beside / "file").write_text("content")
    assert names_in(tmp_path) == ["package"]
    assert names_in(folder) == ["file"]


@pytest.mark.parametrize("name", [".", "/", "/proc"], ids=["current", "root", "mount point"])
def test_a_folder_that_others_stand_in_is_not_replaced(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with refused(OutputError, "cannot be replaced"), new_package(Path(name), replace=True):
        pytest.fail("the block was entered")


def test_replacing_never_takes_files_that_are_not_the_packages(random_package: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    shutil.copytree(random_package, package)
    (package / "thesis.txt").write_text("years of work")
    with refused(OutputError, "thesis.txt"), new_package(package, replace=True):
        pytest.fail("the block was entered")
    web_page = tmp_path / "web"
    web_page.mkdir()
    (web_page / "manifest.json").write_text('{"name": "an app", "files": []}')
    with refused(OutputError, "not a package"), new_package(web_page, replace=True):
        pytest.fail("the block was entered")


def test_a_package_of_a_newer_format_may_be_replaced(random_package: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    shutil.copytree(random_package, package)
    manifest = json.loads((package / "manifest.json").read_text())
    (package / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99, "new": True}))
    with new_package(package, replace=True) as beside:
        (beside / "file").write_text("content")
    assert names_in(package) == ["file"]


def test_the_old_package_stays_when_the_new_one_cannot_take_its_place(
    random_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    shutil.copytree(random_package, package)
    rename = Path.rename

    def refuse_new(self: Path, target: Path) -> Path:
        if self.name.endswith(str(os.getpid())):
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    monkeypatch.setattr("cabochon_convert.package.exchange_folders", lambda _first, _second: False)
    with refused(OutputError, "cross-device"), new_package(package, replace=True):
        pass
    assert names_in(tmp_path) == ["package"]
    assert open_package(package).manifest


def test_a_package_that_a_killed_conversion_had_moved_away_comes_back(random_package: Path, tmp_path: Path) -> None:
    shutil.copytree(random_package, tmp_path / f".package.partial-{dead_process()}-replaced")
    with refused(OutputError, "exists already"), new_package(tmp_path / "package", replace=False):
        pytest.fail("the block was entered")
    assert open_package(tmp_path / "package").manifest


def test_the_checkpoint_is_not_replaced_by_its_package(random_checkpoint: Path) -> None:
    settings = ConversionSettings(RECIPES["float"], replace=True)
    for folder in (random_checkpoint, random_checkpoint.parent):
        with refused(OutputError, "checkpoint itself"):
            convert_checkpoint(random_checkpoint, folder, settings)


def test_leftovers_of_killed_conversions_go_whoever_has_their_number_now(tmp_path: Path) -> None:
    dead, alive = dead_process(), os.getppid()
    goes = [f".a[b].partial-{dead}", ".a[b].partial-99999999999999999999", f".a[b].partial-{alive}"]
    stays = [f".other.partial-{dead}", ".a[b].partial-mine", f".a[b].{dead}"]
    for name in (*goes, *stays):
        (tmp_path / name).mkdir()
        (tmp_path / name / "decoder.onnx.data").write_text("gigabytes")
    with new_package(tmp_path / "a[b]", replace=False):
        pass
    assert names_in(tmp_path) == sorted([*stays, "a[b]"])


@pytest.mark.parametrize("written", ["chat_template.jinja", "per_layer_embeddings.bin"])
def test_a_killed_conversion_leaves_no_package_and_the_next_one_cleans_up(
    random_checkpoint: Path, tmp_path: Path, written: str
) -> None:
    target = tmp_path / "package"
    process = subprocess.Popen([CONVERT, str(random_checkpoint), str(target)])
    partial = tmp_path / f".package.partial-{process.pid}"
    while process.poll() is None and not (partial / written).exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert names_in(tmp_path) == [partial.name]
    for folder in (target, partial):
        assert_refused(run_command(CABOCHON, "info", folder), folder.name)
    convert_checkpoint(random_checkpoint, target, ConversionSettings(RECIPES["float"]))
    assert names_in(tmp_path) == ["package"]
    assert run_command(CABOCHON, "info", target, "--check").returncode == 0
