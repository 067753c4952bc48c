"""Two conversions into one folder at once: one package, whole, and a sentence for the other."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from commands import CONVERT, assert_refused, run_command
from conftest import TINY
from refusals import refused

from cabochon.package import open_package
from cabochon_convert.package import new_package
from cabochon_convert.work_folder import OutputError


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_of_conversions_that_start_together_one_writes_the_package(tmp_path: Path) -> None:
    commands = [[CONVERT, TINY, tmp_path / "package", "--recipe", recipe] for recipe in ("int8", "int4-mixed", "float")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    results = [(process.communicate(timeout=100)[1], process.returncode) for process in processes]
    outcomes = sorted(status for _, status in results)
    assert outcomes[0] == 0, results
    assert set(outcomes) <= {0, 2}
    assert outcomes.count(0) == 1
    for errors, status in results:
        if status:
            assert len(errors.splitlines()) == 1
            assert "being written by process" in errors or "exists already" in errors
    winner = [command[-1] for command, (_, status) in zip(commands, results, strict=True) if status == 0]
    assert open_package(tmp_path / "package", check_again=True).manifest.recipe.name == winner[0]
    assert names_in(tmp_path) == ["package"]


def test_who_comes_second_is_told_at_once_who_is_at_work(tmp_path: Path) -> None:
    with new_package(tmp_path / "package", replace=False) as beside:
        (beside / "file").write_text("first")
        for more in ([], ["--replace"]):
            result = run_command(CONVERT, TINY, tmp_path / "package", *more)
            assert_refused(result, "package", "being written by process", "wait")
        assert (beside / "file").read_text() == "first"
    assert names_in(tmp_path) == ["package"]


@pytest.mark.parametrize("replace", [False, True])
def test_what_appeared_while_a_package_was_made_is_not_overwritten(
    package: Path, tmp_path: Path, replace: bool
) -> None:
    """On a disk without locks, or when somebody copies a folder there."""
    target = tmp_path / "package"
    words = "thesis" if replace else "exists already"
    with refused(OutputError, "package", words), new_package(target, replace=replace) as beside:
        (beside / "file").write_text("second")
        shutil.copytree(package, target)
        if replace:
            (target / "thesis.txt").write_text("years of work")
    assert names_in(tmp_path) == ["package"]
    assert not replace or (target / "thesis.txt").read_text() == "years of work"
    assert open_package(target, check_again=True)
