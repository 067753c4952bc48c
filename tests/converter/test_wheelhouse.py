from __future__ import annotations

from pathlib import Path

import pytest
from made_up_wheels import write_wheel
from refusals import refused

from cabochon.errors import RequestError
from cabochon_convert.wheelhouse import RASPBERRY_PI_SYSTEMS, DeviceSystem, Wheel, fill_wheelhouse, find_system
from cabochon_convert.work_folder import OutputError

BOOKWORM, TRIXIE = RASPBERRY_PI_SYSTEMS


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes wheels from, and from nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def fill(system: DeviceSystem, tmp_path: Path, *wanted: str, constraints: Path | None = None) -> dict[str, Wheel]:
    folder = tmp_path / system.name
    folder.mkdir()
    return {wheel.name: wheel for wheel in fill_wheelhouse(wanted, system, folder, constraints)}


def test_conditions_are_judged_as_the_device_will_see_them(index: Path, tmp_path: Path) -> None:
    conditions = [
        "new; python_version >= '3.13'", "old; python_version < '3.13'", "arm; platform_machine == 'aarch64'",
        "intel; platform_machine == 'x86_64'", "windows; sys_platform == 'win32'",
    ]  # fmt: skip
    write_wheel(index, "app", "1.0", conditions)
    for name in ("new", "old", "arm", "intel"):
        write_wheel(index, name, "1.0")
    assert set(fill(BOOKWORM, tmp_path, "app")) == {"app", "old", "arm"}
    assert set(fill(TRIXIE, tmp_path, "app")) == {"app", "new", "arm"}


def test_each_system_gets_wheels_that_it_can_load(index: Path, tmp_path: Path) -> None:
    for python in ("cp311-cp311", "cp313-cp313"):
        for version, platform in (("1.0", "manylinux_2_28_aarch64"), ("2.0", "manylinux_2_40_aarch64")):
            write_wheel(index, "fast", version, tag=f"{python}-{platform}")
    write_wheel(index, "fast", "3.0", tag="cp313-cp313-manylinux_2_28_x86_64")
    assert fill(BOOKWORM, tmp_path, "fast")["fast"].path.name == "fast-1.0-cp311-cp311-manylinux_2_28_aarch64.whl"
    assert fill(TRIXIE, tmp_path, "fast")["fast"].path.name == "fast-2.0-cp313-cp313-manylinux_2_40_aarch64.whl"


def test_tested_versions_are_taken(index: Path, tmp_path: Path) -> None:
    for version in ("1.0", "2.0"):
        write_wheel(index, "app", version)
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("app==1.0\n")
    wheel = fill(TRIXIE, tmp_path, "app", constraints=constraints)["app"]
    assert wheel.pinned.startswith("app==1.0 --hash=sha256:")


def test_what_is_not_to_be_had_is_told_in_one_sentence(index: Path, tmp_path: Path) -> None:
    write_wheel(index, "app", "1.0", ["gone>=2"])
    with refused(OutputError, "gone"):
        fill(TRIXIE, tmp_path, "app")


def test_an_unknown_python_is_refused_with_those_that_are_known() -> None:
    with refused(RequestError, "3.11 (bookworm) and 3.13 (trixie)"):
        find_system("3.12")
