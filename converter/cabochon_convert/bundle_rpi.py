"""Packages as one tar that installs on a Raspberry Pi without a network: models, wheels, services and an installer.

    NAME/install.sh  NAME/systemd/  NAME/models/PACKAGE/  NAME/wheels/  NAME/requirements-pythonX.Y.txt
    NAME/licences/  NAME/bundle.conf  NAME/README.txt  NAME/SHA256SUMS (of all others)

What the installer does with it stands in `rpi/device/install.sh`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cabochon
from cabochon.errors import RequestError
from cabochon.manifest import MANIFEST_NAME
from cabochon.package import Package, hash_file
from cabochon.whole_file import sync_folder
from cabochon_convert.package import REPORT_NAME, REPORT_PAGE_NAME
from cabochon_convert.progress import Progress, Silence
from cabochon_convert.runtime_wheel import write_runtime_wheel
from cabochon_convert.shared_library_pages import check_wheel
from cabochon_convert.wheelhouse import (
    RASPBERRY_PI_SYSTEMS,
    DeviceSystem,
    Wheel,
    fill_wheelhouse,
    read_wheel,
)
from cabochon_convert.work_folder import OutputError, output_errors, work_folder

ALWAYS = ("server", "mic")
"""Extras that a device gets whatever its package."""
_TIME = 315_532_800
"""1980: the same bundle always has the same bytes, and tar warns about 1970."""
_BYTE_CODE = 1.4
"""Size of a package once Python has compiled it, by its wheel's files."""
_LICENCE = re.compile(r"(licen[cs]e|copying|notice|authors)", re.IGNORECASE)
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
"""Of folders and files that a shell script goes through."""


@dataclass(frozen=True, slots=True)
class BundleSettings:
    """What goes into a bundle beside its packages."""

    systems: tuple[DeviceSystem, ...] = RASPBERRY_PI_SYSTEMS
    extras: tuple[str, ...] = ()
    """Of cabochon, beside those that engines and `ALWAYS` bring."""
    constraints: Path | None = None
    """Versions of wheels; None where those that were tested are unknown."""
    replace: bool = False

    def __post_init__(self) -> None:
        if len({system.machine for system in self.systems}) != 1:
            raise ValueError("a bundle is for systems of one machine")


@dataclass(frozen=True, slots=True)
class Bundle:
    """What was written."""

    path: Path
    size: int
    """Bytes."""
    wheels: int
    libraries: int
    """Shared libraries in them, all of which can be loaded with pages of 16 KB."""


def write_rpi_bundle(
    packages: Sequence[Package], path: Path, settings: BundleSettings, progress: Progress | None = None
) -> Bundle:
    """Write a bundle of one package or several, of which a service serves the first.

    Raises:
        RequestError: a package's name or files cannot be part of a bundle.
        LibraryError: a wheel holds a library that a Raspberry Pi could not load.
        OutputError: the file exists, cannot be written, or a wheel is not to be had; nothing is left behind.
    """
    progress = progress or Silence()
    _refuse_names(packages)
    if path.exists() and not (settings.replace and path.is_file()):
        raise OutputError(f"{path} exists already: choose another name, or replace it with --replace.")
    with output_errors(path), work_folder(path) as parts:
        beside = parts / path.name
        wheelhouse = _collect_wheels(packages, settings, parts, progress)
        files = _list_files(packages, settings.systems[0].machine, wheelhouse, parts)
        _write_tar(beside, _top_folder(path), files, progress)
        beside.replace(path)
        sync_folder(path.parent)
    wheels = {wheel.path.name for each in wheelhouse.wheels.values() for wheel in each}
    return Bundle(path, path.stat().st_size, len(wheels), wheelhouse.libraries)


def find_device_files() -> Path:
    """The folder of installer and units: beside this module where it was installed, in `rpi/device` of a clone."""
    installed = Path(__file__).parent / "rpi_device"
    return installed if installed.is_dir() else Path(__file__).resolve().parents[2] / "rpi" / "device"


def find_constraints() -> Path | None:
    """The versions that were tested, where they are at hand."""
    here = Path(__file__)
    known = (here.parent / "rpi_device" / "constraints.txt", here.resolve().parents[2] / "constraints.txt")
    return next((each for each in known if each.is_file()), None)


@dataclass(frozen=True, slots=True)
class _Wheelhouse:
    wheels: dict[str, list[Wheel]]
    """By version of Python."""
    libraries: int


def _refuse_names(packages: Sequence[Package]) -> None:
    names = [package.folder.resolve().name for package in packages]
    if len(set(names)) < len(names):
        raise RequestError(f"two packages are called {max(names, key=names.count)}: rename one of the folders.")
    for package, name in zip(packages, names, strict=True):
        for each in (name, *(part for record in package.manifest.files for part in Path(record.path).parts)):
            if not _SAFE_NAME.fullmatch(each):
                raise RequestError(
                    f"{package.folder} cannot be bundled, because {each!r} has other characters than letters, digits, "
                    ". _ + and -: rename it."
                )


def _collect_wheels(
    packages: Sequence[Package], settings: BundleSettings, parts: Path, progress: Progress
) -> _Wheelhouse:
    engines = {engine for package in packages for engine in package.manifest.engines}
    extras = {*engines, *ALWAYS, *settings.extras}
    own = read_wheel(write_runtime_wheel(parts))
    if unknown := sorted(extras.difference(own.extras)):
        raise RequestError(f"cabochon has no extra {unknown[0]!r}: its version and the package's do not fit.")
    found: dict[str, list[Wheel]] = {}
    checked: dict[str, int] = {}
    progress.start("downloading wheels", len(settings.systems), " systems")
    for system in settings.systems:
        folder = parts / system.name
        folder.mkdir()
        wanted = [f"cabochon[{','.join(sorted(extras))}]=={cabochon.__version__}", "pip"]
        found[system.python] = fill_wheelhouse(wanted, system, folder, settings.constraints, [own])
        for wheel in found[system.python]:
            if wheel.path.name not in checked:
                checked[wheel.path.name] = check_wheel(wheel.path, system.machine)
        progress.advance(1)
    return _Wheelhouse(found, sum(checked.values()))


def _list_files(packages: Sequence[Package], machine: str, wheelhouse: _Wheelhouse, parts: Path) -> dict[str, Path]:
    """Every file of the bundle by its name there, the list of hashes first."""
    files: dict[str, Path] = {}
    device = find_device_files()
    for source in sorted(device.iterdir()):
        if source.suffix in {".service", ".default"}:
            files[f"systemd/{source.name}"] = source
    files["install.sh"] = device / "install.sh"
    files["README.txt"] = device / "README.txt"
    files["bench.py"] = next(path for path in (device / "bench.py", device.parent / "bench.py") if path.is_file())
    for python, wheels in wheelhouse.wheels.items():
        files |= {f"wheels/{wheel.path.name}": wheel.path for wheel in wheels}
        requirements = parts / f"requirements-python{python}.txt"
        requirements.write_text("".join(f"{wheel.pinned}\n" for wheel in wheels if wheel.name != "pip"), "utf-8")
        files[requirements.name] = requirements
    files |= _extract_licences([path for name, path in files.items() if name.startswith("wheels/")], parts)
    hashes = {name: hash_file(path) for name, path in files.items()}
    models: dict[str, Path] = {}
    for package in packages:
        prefix = f"models/{package.folder.resolve().name}"
        # The package was checked when it was opened, so that its gigabytes need not be read for their hashes again.
        for record in package.manifest.files:
            models[f"{prefix}/{record.path}"] = package.path(record.path)
            hashes[f"{prefix}/{record.path}"] = record.sha256
        for name in (MANIFEST_NAME, REPORT_NAME, REPORT_PAGE_NAME):
            if (package.folder / name).is_file():
                models[f"{prefix}/{name}"] = package.folder / name
                hashes[f"{prefix}/{name}"] = hash_file(package.folder / name)
    configuration = parts / "bundle.conf"
    configuration.write_text(_configuration(packages, machine, wheelhouse, models, hashes), "utf-8")
    hashes["bundle.conf"] = hash_file(configuration)
    sums = parts / "SHA256SUMS"
    sums.write_text("".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes)), "utf-8")
    return {"SHA256SUMS": sums, "bundle.conf": configuration, **files, **models}


def _configuration(
    packages: Sequence[Package],
    machine: str,
    wheelhouse: _Wheelhouse,
    models: dict[str, Path],
    hashes: dict[str, str],
) -> str:
    """Names and numbers for the installer; values are of characters that a shell leaves alone."""
    identity = hashlib.sha256(repr(sorted(hashes.items())).encode()).hexdigest()[:12]
    names = [package.folder.resolve().name for package in packages]
    lines = {
        "VERSION": cabochon.__version__,
        "BUNDLE_ID": f"{cabochon.__version__}-{identity}",
        "ARCHITECTURE": machine,
        "PYTHONS": " ".join(wheelhouse.wheels),
        "MODELS": " ".join(names),
        "FIRST_MODEL": names[0],
        "MODEL_KB": str(sum(path.stat().st_size // 1024 + 1 for path in models.values())),
    }
    for python, wheels in wheelhouse.wheels.items():
        size = sum(wheel.installed_bytes for wheel in wheels) * _BYTE_CODE
        lines[f"PYTHON_{python.replace('.', '_')}_KB"] = str(round(size / 1024))
    return "".join(f"{name}='{value}'\n" for name, value in lines.items())


def _extract_licences(wheels: Sequence[Path], parts: Path) -> dict[str, Path]:
    """What wheels say about their licences, by its name in the bundle."""
    found: dict[str, Path] = {}
    for wheel in wheels:
        name = wheel.name.split("-")[0]
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                base = Path(entry.filename).name
                in_metadata = ".dist-info/" in entry.filename and (
                    _LICENCE.match(base) or base == "METADATA" or "/licenses/" in entry.filename
                )
                if entry.is_dir() or not (in_metadata or base == "ThirdPartyNotices.txt"):
                    continue
                inside = re.sub(r"[^A-Za-z0-9._+-]", "_", entry.filename.rpartition(".dist-info/")[2].replace("/", "."))
                target = parts / "licences" / name / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
                found[f"licences/{name}/{inside}"] = target
    return found


def _top_folder(path: Path) -> str:
    name = path.name.removesuffix(".tar")
    if not _SAFE_NAME.fullmatch(name):
        raise RequestError(f"{path.name} has other characters than letters, digits, . _ + and -: choose another name.")
    return name


def _write_tar(path: Path, top: str, files: dict[str, Path], progress: Progress) -> None:
    """Uncompressed: wheels and weights hardly become smaller."""
    progress.start("writing the bundle", sum(source.stat().st_size for source in files.values()), "B")
    with path.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for name, source in files.items():
                entry = tarfile.TarInfo(f"{top}/{name}")
                entry.size, entry.mtime = source.stat().st_size, _TIME
                entry.mode = 0o755 if name.endswith(".sh") else 0o644
                with source.open("rb") as content:
                    archive.addfile(entry, content)
                progress.advance(entry.size)
        file.flush()
        os.fsync(file.fileno())
