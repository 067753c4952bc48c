"""The commands that make of a package what a device wants: litertlm, bundle and android. Like cli.py, it prints."""

from __future__ import annotations

import argparse
from pathlib import Path

from cabochon.errors import RequestError, missing_dependency
from cabochon.languages import language_name
from cabochon.package import open_package
from cabochon_convert.progress_bars import ProgressBars


def litertlm_parser() -> argparse.ArgumentParser:
    """Of `cabochon-convert litertlm`."""
    parser = argparse.ArgumentParser(
        prog="cabochon-convert litertlm",
        description="Bundle a package that was converted with --target litert into a file for Google's LiteRT-LM.",
    )
    parser.add_argument("package", type=Path, help="folder that cabochon-convert wrote")
    parser.add_argument("output", type=Path, help="file to be written: NAME.litertlm")
    parser.add_argument(
        "--context-length", type=int, help="positions of the caches (default: as many as the package has)"
    )
    return parser


def device_bundle_parser() -> argparse.ArgumentParser:
    """Of `cabochon-convert bundle`."""
    parser = argparse.ArgumentParser(
        prog="cabochon-convert bundle",
        description="Bundle packages with everything that a device needs to run them, as one tar that installs there "
        "without a network.",
    )
    parser.add_argument(
        "packages", type=Path, nargs="+", metavar="package",
        help="folder that cabochon-convert wrote; a service serves the first",
    )  # fmt: skip
    parser.add_argument("--for", required=True, dest="device", choices=("rpi",), help="the device: a Raspberry Pi")
    parser.add_argument("--output", type=Path, metavar="FILE", help="tar to be written (default: PACKAGE-rpi.tar)")
    parser.add_argument(
        "--python", action="append", metavar="VERSION",
        help="of the system: 3.11 (bookworm) or 3.13 (trixie); may be repeated (default: both)",
    )  # fmt: skip
    parser.add_argument(
        "--extra", action="append", default=[], choices=("constraints", "video"), help="of cabochon, to install, too"
    )
    parser.add_argument("--replace", action="store_true", help="replace a tar that exists")
    return parser


def bundle_for_device(arguments: argparse.Namespace) -> None:
    """Run `cabochon-convert bundle`."""
    from cabochon_convert.bundle_rpi import BundleSettings, find_constraints, write_rpi_bundle
    from cabochon_convert.wheelhouse import RASPBERRY_PI_SYSTEMS, find_system

    systems = tuple(map(find_system, dict.fromkeys(arguments.python))) if arguments.python else RASPBERRY_PI_SYSTEMS
    packages = [open_package(folder) for folder in arguments.packages]
    output = arguments.output or Path(f"{packages[0].folder.resolve().name}-rpi.tar")
    settings = BundleSettings(systems, tuple(arguments.extra), find_constraints(), arguments.replace)
    with ProgressBars() as progress:
        bundle = write_rpi_bundle(packages, output, settings, progress)
    print(
        f"{bundle.path}: {bundle.size / 1e6:.1f} MB, {bundle.wheels} wheels, {bundle.libraries} libraries, "
        "all for pages of 4 to 16 KB"
    )


def bundle_for_litertlm(arguments: argparse.Namespace) -> None:
    """Run `cabochon-convert litertlm`."""
    try:
        from cabochon_convert.bundle_litertlm import write_litertlm
    except ImportError as error:
        raise missing_dependency(str(error.name), "convert-litert") from None
    size = write_litertlm(open_package(arguments.package), arguments.output, arguments.context_length)
    print(f"{arguments.output}: {size / 1e6:.1f} MB")


def android_parser() -> argparse.ArgumentParser:
    """Of `cabochon-convert android`."""
    parser = argparse.ArgumentParser(
        prog="cabochon-convert android",
        description="Write what the Android app needs of a package: assets, files to be pushed, and golden vectors.",
    )
    parser.add_argument("package", type=Path, help="folder that cabochon-convert wrote")
    parser.add_argument("--app", type=Path, required=True, help="the Android project: android_demo")
    parser.add_argument("--check", action="store_true", help="write nothing, and fail where what lies there is stale")
    parser.add_argument("--languages", help="to choose from, in this order: en,de,fr (default: all that have a code)")
    parser.add_argument(
        "--example",
        nargs=3,
        action="append",
        default=[],
        metavar=("SOUND", "SOURCE", "TARGET"),
        help="a sound to be translated for the golden vectors; may be said several times (default: a made-up tone)",
    )
    parser.add_argument(
        "--asset-megabytes", type=float, default=64, help="larger packages are to be pushed (default: %(default)s)"
    )
    parser.add_argument("--litertlm", type=Path, help="file of cabochon-convert litertlm, to be pushed as well")
    return parser


def write_assets(arguments: argparse.Namespace) -> None:
    """Run `cabochon-convert android`."""
    from cabochon_convert.android_assets import (
        ALL_LANGUAGES,
        AndroidSettings,
        refuse_stale_assets,
        write_android_assets,
    )
    from cabochon_convert.android_golden import SpokenExample

    names = arguments.languages.split(",") if arguments.languages else ALL_LANGUAGES
    if arguments.litertlm is not None and not arguments.litertlm.is_file():
        raise RequestError(f"{arguments.litertlm} is no file: expected one that cabochon-convert litertlm wrote.")
    settings = AndroidSettings(
        languages=tuple(language_name(name) for name in names),
        examples=tuple(SpokenExample(Path(sound), *pair) for sound, *pair in arguments.example),
        asset_bytes=round(arguments.asset_megabytes * 1e6),
        bundle=arguments.litertlm,
    )
    package = open_package(arguments.package)
    if arguments.check:
        refuse_stale_assets(package, arguments.app, settings)
        print(f"{arguments.app}: assets and golden vectors are those of {arguments.package}")
        return
    files = write_android_assets(package, arguments.app, settings)
    for delivery in ("asset", "push"):
        sizes = [file.size for file in files if file.delivery == delivery]
        print(f"{arguments.app}: {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB, delivery {delivery}")
