"""What is handed to others: the wheel, and the sources that it can be built from."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import cabochon

REPOSITORY = Path(__file__).resolve().parent.parent
NAME = f"cabochon-{cabochon.__version__}"
SOURCES = {
    "CHANGELOG.md", "LICENSE", "README.md", "constraints.txt", "pyproject.toml", "rpi/bench.py",
    "rpi/device/README.txt", "rpi/device/cabochon-http.default", "rpi/device/cabochon-http.service",
    "rpi/device/cabochon-wyoming.default", "rpi/device/cabochon-wyoming.service", "rpi/device/install.sh",
}  # fmt: skip
"""Of the source distribution, beside the two packages."""
DEVICE_FILES = {
    "README.txt", "bench.py", "cabochon-http.default", "cabochon-http.service", "cabochon-wyoming.default",
    "cabochon-wyoming.service", "constraints.txt", "install.sh",
}  # fmt: skip
"""Of the wheel: what a bundle for a Raspberry Pi holds of ours."""
OTHER_FILES = {"py.typed", "web_page.html"}
"""Of both packages: all that is no module."""
MOST_BYTES = 1_000_000


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `python -m build` makes: the sources, and a wheel of them."""
    folder = tmp_path_factory.mktemp("dist")
    build(REPOSITORY, folder, "sdist")
    with tarfile.open(folder / f"{NAME}.tar.gz") as archive:
        for member in archive.getmembers():
            assert member.isfile()
            path = folder / "unpacked" / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            content = archive.extractfile(member)
            assert content is not None
            path.write_bytes(content.read())
    build(folder / "unpacked" / NAME, folder, "wheel")
    return folder


def build(sources: Path, folder: Path, kind: str) -> None:
    """Args: kind: `sdist` or `wheel`."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(folder)]
    subprocess.run(command, cwd=sources, check=True, capture_output=True)


def tracked(folder: str) -> set[str]:
    """Files of a package that belong to it, by their paths below the folder's parent."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder],
        cwd=REPOSITORY, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return set(listed.stdout.split())


def test_the_sources_hold_both_packages_and_what_a_device_gets_and_nothing_else(distributions: Path) -> None:
    with tarfile.open(distributions / f"{NAME}.tar.gz") as archive:
        found = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}
    packages = tracked("runtime/cabochon") | tracked("converter/cabochon_convert")
    assert found == SOURCES | packages | {"PKG-INFO", ".gitignore"}


def test_the_wheel_holds_both_packages_and_what_a_device_gets_and_nothing_else(distributions: Path) -> None:
    path = distributions / f"{NAME}-py3-none-any.whl"
    with zipfile.ZipFile(path) as wheel:
        found = set(wheel.namelist())
    packages = {name.partition("/")[2] for name in tracked("runtime/cabochon") | tracked("converter/cabochon_convert")}
    assert {Path(name).name for name in packages if not name.endswith(".py")} == OTHER_FILES
    about = {
        f"{NAME}.dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    }
    assert found == packages | {f"cabochon_convert/rpi_device/{name}" for name in DEVICE_FILES} | about
    assert path.stat().st_size < MOST_BYTES


def test_both_packages_tell_type_checkers_that_they_are_annotated(distributions: Path) -> None:
    with zipfile.ZipFile(distributions / f"{NAME}-py3-none-any.whl") as wheel:
        assert {"cabochon/py.typed", "cabochon_convert/py.typed"} <= set(wheel.namelist())


def test_the_wheel_needs_numpy_only_and_offers_every_extra_of_the_project(distributions: Path) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with zipfile.ZipFile(distributions / f"{NAME}-py3-none-any.whl") as wheel:
        metadata = Parser().parsestr(wheel.read(f"{NAME}.dist-info/METADATA").decode())
    assert set(metadata.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])
    unconditional = [each for each in metadata.get_all("Requires-Dist", []) if "extra ==" not in each]
    assert unconditional == ["numpy>=2.0"]
    assert metadata["Requires-Python"] == project["requires-python"]
    assert "# cabochon" in metadata.get_payload()
