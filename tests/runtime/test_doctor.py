from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cabochon.doctor
from cabochon.doctor import (
    Finding,
    Library,
    check_cache_folder,
    check_engines,
    check_fit,
    diagnose,
    judge_fit,
    judge_library,
    judge_memory,
    judge_processor,
    parse_arecord,
)
from cabochon.machine import Memory, MemoryLimit, parse_processor
from cabochon.package import open_package


def by_name(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


@pytest.fixture
def package(random_package: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(random_package, tmp_path / "package"))


def test_a_whole_package_on_this_machine_has_no_problem(random_package: Path) -> None:
    findings = by_name(diagnose(random_package))
    assert [finding for finding in findings.values() if finding.status == "problem"] == []
    names = {"python", "processor", "memory", "onnxruntime", "voice detector", "microphone", "package", "cache folder"}
    assert names | {"fits into memory"} <= set(findings)


def test_a_file_that_was_altered_is_a_problem_even_if_it_was_whole_before(package: Path) -> None:
    assert by_name(diagnose(package))["package"].status == "ok"
    path = package / "decoder.onnx.data"
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)
    finding = by_name(diagnose(package))["package"]
    assert finding.status == "problem"
    assert "decoder.onnx.data" in finding.found
    assert finding.advice


@pytest.mark.parametrize(
    ("room", "status"),
    [(900, "ok"), (899, "warning"), (500, "warning"), (499, "warning"), (300, "warning"), (299, "problem")],
)
def test_what_does_not_fit_is_told_by_how_much_of_it_does(room: int, status: str) -> None:
    assert judge_fit(text=500, everything=900, mapped=200, room=room, found="").status == status


def test_the_arithmetic_of_the_memory_is_told_and_its_limit_counts(random_package: Path) -> None:
    opened = open_package(random_package)
    rich = Memory(total=10**11, available=10**11)
    (finding,) = check_fit(opened, "", 0, rich, None)
    assert finding.status == "ok"
    assert "caches of" in finding.found
    assert "computed" in finding.found
    (finding,) = check_fit(opened, "", 0, rich, MemoryLimit(10**7, 0))
    assert finding.status == "problem"
    assert "10.0 MB available" in finding.found
    (finding,) = check_fit(opened, "", 10**9, rich, None)
    assert finding.status == "problem"
    assert "--context-length" in finding.found


def test_an_engine_that_the_package_has_no_graphs_for_is_a_problem(random_package: Path) -> None:
    (finding,) = check_fit(open_package(random_package), "litert", 0, Memory(), None)
    assert (finding.name, finding.status) == ("engine", "problem")


def refuse_import(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    real = cabochon.doctor.import_module

    def import_module(name: str) -> Any:
        if name in modules:
            raise ImportError(f"No module named {name!r}")
        return real(name)

    monkeypatch.setattr(cabochon.doctor, "import_module", import_module)


def test_only_the_engine_that_a_package_needs_has_to_be_there(
    random_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_package(random_package)
    refuse_import(monkeypatch, "ai_edge_litert")
    assert by_name(check_engines(opened, ""))["ai-edge-litert"].status == "ok"
    refuse_import(monkeypatch, "onnxruntime")
    finding = by_name(check_engines(opened, ""))["onnxruntime"]
    assert finding.status == "problem"
    assert ".[onnx]" in finding.advice


def test_without_any_engine_each_of_them_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_import(monkeypatch, "ai_edge_litert", "onnxruntime")
    assert {finding.status for finding in check_engines(None, "")} == {"problem"}


@pytest.mark.parametrize("error", [ImportError("libfoo.so.1: cannot open"), OSError("wrong\nELF class"), ValueError()])
def test_a_library_that_breaks_when_it_is_imported_is_told_in_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def import_module(_: str) -> Any:
        raise error

    monkeypatch.setattr(cabochon.doctor, "import_module", import_module)
    finding = judge_library(Library("numpy", "numpy", "everything", "pip install numpy"), "problem")
    assert finding.status == "problem"
    assert "cannot be imported" in finding.found
    assert len(finding.found.splitlines()) == 1


def test_a_library_that_is_not_there_is_not_installed() -> None:
    finding = judge_library(Library("no_such_module", "no-such-library", "x", "pip install x"), "warning")
    assert (finding.status, finding.found) == ("warning", "not installed")


def test_what_only_some_need_is_a_warning_that_says_who(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = by_name(cabochon.doctor.check_libraries())
    refuse_import(monkeypatch, "PIL", "av", "llguidance")
    found = by_name(cabochon.doctor.check_libraries())
    for name, purpose in (("pillow", "images"), ("av", "video"), ("llguidance", "tools")):
        assert whole[name].status == "ok"
        assert whole[name].found.startswith(importlib.metadata.version(name))
        assert purpose in whole[name].found
        assert (found[name].status, purpose in found[name].advice) == ("warning", True)
        assert "cannot be imported" in found[name].found


def test_a_cache_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (finding,) = check_cache_folder(None, "")
    assert finding.status == "warning"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    (finding,) = check_cache_folder(None, "")
    assert finding.status == "ok"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_processor_without_dot_products_and_one_that_is_not_wholly_used_are_warned_of() -> None:
    findings = by_name(judge_processor(parse_processor("Features: fp asimd\n", "aarch64", 4, 2)))
    assert findings["processor features"].status == "warning"
    assert "asimddp" in findings["processor features"].found
    assert findings["cores"].status == "warning"
    assert "2 of 4" in findings["cores"].found
    findings = by_name(judge_processor(parse_processor("Features: asimd asimddp\n", "aarch64", 4, 4)))
    assert {finding.status for finding in findings.values()} == {"ok"}


def test_memory_that_the_system_does_not_tell_is_a_warning() -> None:
    findings = by_name(judge_memory(Memory(), None, 4096))
    assert findings["memory"].status == "warning"
    findings = by_name(judge_memory(Memory(8 * 10**9, 7 * 10**9, 0, 0), MemoryLimit(2 * 10**9, None), 16384))
    assert "2.00 GB" in findings["memory limit"].found
    assert findings["page size"].found == "16384 bytes"


def test_microphones_are_read_from_what_arecord_lists() -> None:
    text = (
        "**** List of CAPTURE Hardware Devices ****\n"
        "card 1: Device [USB PnP Sound Device], device 0: USB Audio [USB Audio]\n  Subdevices: 1/1\n"
    )
    assert parse_arecord(text) == ["Device [USB PnP Sound Device]"]


@given(st.text())
def test_whatever_arecord_prints_is_a_list_of_lines(text: str) -> None:
    assert all(len(name.splitlines()) <= 1 for name in parse_arecord(text))


def test_without_ways_to_hear_the_advice_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_import(monkeypatch, "sounddevice")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    (finding,) = cabochon.doctor.check_microphone()
    assert finding.status == "warning"
    assert "alsa-utils" in finding.advice


def test_what_is_wrong_always_comes_with_advice() -> None:
    with pytest.raises(ValueError, match="without advice"):
        Finding("x", "problem", "y")
