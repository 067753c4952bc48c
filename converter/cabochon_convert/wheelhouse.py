"""Wheels for another machine, complete, so that pip there needs no network.

pip downloads them; but it judges conditions such as `python_version >= "3.13"` by the Python that it runs on
(https://github.com/pypa/pip/issues/6117, so in pip 23.2). So the wheels' own requirements are gone through here, as the
device will see them, until nothing is missing, and what the device does not need is left out.
"""

from __future__ import annotations

import email.parser
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cabochon.errors import RequestError, missing_dependency
from cabochon.package import hash_file
from cabochon_convert.work_folder import OutputError

try:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name, parse_wheel_filename
    from packaging.version import Version
except ImportError as error:
    raise missing_dependency(str(error.name), "bundle") from None

OLDEST_GLIBC = 17
"""Of manylinux_2_17, alias manylinux2014, the oldest that knows aarch64."""
PIP_SECONDS = 1800.0


@dataclass(frozen=True, slots=True)
class DeviceSystem:
    """A system that wheels are chosen for."""

    name: str
    python: str
    """As in `3.11`."""
    glibc: int
    """36 for 2.36."""
    machine: str = "aarch64"

    @property
    def platforms(self) -> list[str]:
        """Tags of wheels that it can load."""
        tags = [f"manylinux_2_{minor}_{self.machine}" for minor in range(self.glibc, OLDEST_GLIBC - 1, -1)]
        return [*tags, f"manylinux2014_{self.machine}", f"linux_{self.machine}"]

    def environment(self, extra: str = "") -> dict[str, str]:
        """What conditions of requirements are judged by."""
        return {
            "extra": extra, "implementation_name": "cpython", "implementation_version": f"{self.python}.0",
            "os_name": "posix", "platform_machine": self.machine, "platform_python_implementation": "CPython",
            "platform_release": "", "platform_system": "Linux", "platform_version": "",
            "python_full_version": f"{self.python}.0", "python_version": self.python, "sys_platform": "linux",
        }  # fmt: skip


RASPBERRY_PI_SYSTEMS = (DeviceSystem("bookworm", "3.11", 36), DeviceSystem("trixie", "3.13", 41))


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel and what its metadata says."""

    path: Path
    name: str
    """Canonical."""
    version: str
    requirements: tuple[str, ...]
    extras: tuple[str, ...]
    sha256: str
    installed_bytes: int

    @property
    def pinned(self) -> str:
        """A line of a requirements file that only this very file satisfies."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


def read_wheel(path: Path) -> Wheel:
    """OutputError where it is not a wheel."""
    try:
        name, version, _, _ = parse_wheel_filename(path.name)
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            metadata = next(each for each in entries if each.filename.endswith(".dist-info/METADATA"))
            message = email.parser.BytesParser().parsebytes(archive.read(metadata))
    except (ValueError, StopIteration, OSError, zipfile.BadZipFile) as error:
        raise OutputError(f"{path} cannot be read as a wheel ({error}): make the bundle again.") from None
    size = sum(each.file_size for each in entries)
    requirements = tuple(map(str, message.get_all("Requires-Dist", [])))
    extras = tuple(map(str, message.get_all("Provides-Extra", [])))
    return Wheel(path, name, str(version), requirements, extras, hash_file(path), size)


def fill_wheelhouse(
    wanted: Sequence[str], system: DeviceSystem, folder: Path, constraints: Path | None, own: Sequence[Wheel] = ()
) -> list[Wheel]:
    """Download what a system needs; returns all of its wheels, by name.

    Args:
        wanted: requirements with extras, such as `cabochon[onnx]`.
        folder: an empty one, for this system.
        constraints: versions to take.
        own: wheels that are there already.

    Raises:
        OutputError: pip cannot get something.
    """
    asked: list[str] = []
    download = _downloader(system, folder, constraints)
    while True:
        wheels = {wheel.name: wheel for wheel in (*map(read_wheel, sorted(folder.glob("*.whl"))), *own)}
        needed, missing = _go_through(wanted, system, wheels)
        if not missing:
            return [wheel for name, wheel in sorted(wheels.items()) if name in needed]
        if set(missing) <= set(asked):
            raise OutputError(f"pip brought no wheel for {', '.join(missing)} on {system.name}: pin another version.")
        asked += [each for each in missing if each not in asked]
        # All at once, so that pip chooses versions that fit each other.
        for leftover in folder.glob("*.whl"):
            leftover.unlink()
        download(asked)


def _go_through(wanted: Iterable[str], system: DeviceSystem, wheels: dict[str, Wheel]) -> tuple[set[str], list[str]]:
    """Names that are needed, and requirements that no wheel satisfies."""
    needed: set[tuple[str, str]] = set()
    missing: list[str] = []
    waiting = [Requirement(each) for each in wanted]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        wheel = wheels.get(name)
        if wheel is None or not requirement.specifier.contains(Version(wheel.version), prereleases=True):
            requirement.marker = None
            missing.append(str(requirement))
            continue
        for extra in ("", *requirement.extras):
            if (name, extra) in needed:
                continue
            needed.add((name, extra))
            environment = system.environment(extra)
            for each in map(Requirement, wheel.requirements):
                if each.marker is None or each.marker.evaluate(environment):
                    waiting.append(each)
    return {name for name, _ in needed}, sorted(set(missing))


def _downloader(system: DeviceSystem, folder: Path, constraints: Path | None) -> Callable[[list[str]], None]:
    def download(requirements: list[str]) -> None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
        command += ["--dest", str(folder), "--only-binary=:all:", "--implementation", "cp"]
        command += ["--python-version", system.python]
        command += [word for tag in system.platforms for word in ("--platform", tag)]
        command += ["--constraint", str(constraints)] if constraints else []
        try:
            outcome = subprocess.run(
                [*command, *requirements], capture_output=True, text=True, timeout=PIP_SECONDS, check=False,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise OutputError(f"pip cannot be run ({error}).") from None
        if outcome.returncode:
            if "No module named pip" in outcome.stderr:
                raise missing_dependency("pip", "bundle")
            lines = [line for line in outcome.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
            raise OutputError(
                f"pip cannot get the wheels for {system.name} ({lines[0].removeprefix('ERROR: ').rstrip('.')}): "
                "making a bundle needs a network, or a folder of wheels named in PIP_FIND_LINKS."
            )

    return download


def find_system(python: str) -> DeviceSystem:
    """The system with this Python; RequestError where there is none."""
    for system in RASPBERRY_PI_SYSTEMS:
        if system.python == python:
            return system
    known = " and ".join(f"{each.python} ({each.name})" for each in RASPBERRY_PI_SYSTEMS)
    raise RequestError(f"there is no Raspberry Pi OS with Python {python}: choose of {known}.")
