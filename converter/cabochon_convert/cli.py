"""The `cabochon-convert` command. The only module of the converter that prints."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import cabochon
from cabochon.cli import errors_in_one_sentence, prepare_streams
from cabochon.engines import ENGINES
from cabochon.errors import RequestError, missing_dependency
from cabochon.languages import language_name
from cabochon.manifest import CACHE_STORAGE_BYTES
from cabochon.package import open_package
from cabochon_convert.recipes import DEFAULT_RECIPE, RECIPES

if TYPE_CHECKING:
    from cabochon_convert.calibration import Calibration
    from cabochon_convert.evaluation_data import EvaluationData
    from cabochon_convert.source import CheckpointSource


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 when a verification failed, 2 for an error to be mended."""
    prepare_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    with errors_in_one_sentence("cabochon-convert") as outcome:
        if words[:1] == ["verify"]:
            parsed = _verify_parser().parse_args(words[1:])
            data = _evaluation_data(parsed)
            outcome.status = _verify(parsed.packages, _source(parsed), data)
        elif words[:1] == ["litertlm"]:
            _bundle(_litertlm_parser().parse_args(words[1:]))
        elif words[:1] == ["android"]:
            _write_android_assets(_android_parser().parse_args(words[1:]))
        elif words[:1] == ["bundle"]:
            _bundle_for_device(_bundle_parser().parse_args(words[1:]))
        else:
            outcome.status = _convert(_parser().parse_args(words))
    return outcome.status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cabochon-convert",
        description="Convert a Gemma 4 E2B or E4B checkpoint, a fine-tune included, into a package for cabochon.",
        epilog="cabochon-convert verify PACKAGE --reference CHECKPOINT compares packages that exist already; "
        "cabochon-convert litertlm PACKAGE FILE bundles one for Google's LiteRT-LM; "
        "cabochon-convert android PACKAGE --app android_demo puts one into the Android app; "
        "cabochon-convert bundle PACKAGE --for rpi makes a tar that installs on a Raspberry Pi without a network.",
    )
    parser.add_argument("--version", action="version", version=f"cabochon {cabochon.__version__}")
    parser.add_argument(
        "checkpoint",
        help="Hugging Face folder with config.json and safetensors, or the hub's id of a model to download: "
        "google/gemma-4-E2B-it",
    )
    parser.add_argument("output", type=Path, help="folder of the package to be written")
    parser.add_argument(
        "--target", choices=ENGINES, default=ENGINES[0], help="engine that is to run it (default: %(default)s)"
    )
    parser.add_argument(
        "--recipe", choices=tuple(RECIPES), default=DEFAULT_RECIPE, help="quantization (default: %(default)s)"
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        help="folder laid out as for --data, of other speech: recipes that calibrate round by what the model makes of "
        "it",
    )
    parser.add_argument(
        "--context-length", type=int, help="positions that the graph can address (default: 4096, or all of the model's)"
    )
    parser.add_argument(
        "--kv-cache",
        choices=tuple(CACHE_STORAGE_BYTES),
        default="float32",
        help="how layers that attend to the whole context keep keys and values (default: %(default)s; int8 takes a "
        "quarter of the memory, on onnx only)",
    )
    parser.add_argument("--text-only", action="store_true", help="leave the audio and the vision encoder out")
    parser.add_argument("--no-vision", action="store_true", help="leave the vision encoder out")
    parser.add_argument(
        "--drafter",
        metavar="CHECKPOINT",
        help="put a drafter (MTP) into the package, which makes answers come faster: folder or hub id of a model named "
        "...-it-assistant",
    )
    parser.add_argument("--drafter-revision", help="branch, tag or commit of a drafter on the hub")
    parser.add_argument("--replace", action="store_true", help="replace a package that exists")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare with transformers and write report.json and report.html into the package",
    )
    _add_source(parser)
    _add_data(parser)
    return parser


def _verify_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cabochon-convert verify",
        description="Compare packages with their checkpoint and write report.json and report.html into each package.",
    )
    parser.add_argument("packages", type=Path, nargs="+", metavar="package", help="folder that cabochon-convert wrote")
    parser.add_argument(
        "--reference", required=True, dest="checkpoint", help="the checkpoint that they came from: folder or hub id"
    )
    _add_source(parser)
    _add_data(parser)
    return parser


def _litertlm_parser() -> argparse.ArgumentParser:
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


def _bundle_parser() -> argparse.ArgumentParser:
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


def _bundle_for_device(arguments: argparse.Namespace) -> None:
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


def _bundle(arguments: argparse.Namespace) -> None:
    try:
        from cabochon_convert.bundle_litertlm import write_litertlm
    except ImportError as error:
        raise missing_dependency(str(error.name), "convert-litert") from None
    size = write_litertlm(open_package(arguments.package), arguments.output, arguments.context_length)
    print(f"{arguments.output}: {size / 1e6:.1f} MB")


def _android_parser() -> argparse.ArgumentParser:
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


def _write_android_assets(arguments: argparse.Namespace) -> None:
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


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", help="branch, tag or commit of a model on the hub (default: its main branch)")
    parser.add_argument(
        "--lora",
        metavar="ADAPTER",
        help="LoRA adapter to merge into the checkpoint: folder that peft saved, or hub id",
    )
    parser.add_argument("--lora-revision", help="branch, tag or commit of an adapter on the hub")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        help="verify on speech and prompts of your own: a folder of NAME.wav with NAME.txt (what is said), "
        "NAME.de.txt (what it means in German) and prompts.txt",
    )
    parser.add_argument(
        "--language", default="English", help="spoken in --data and --calibration (default: %(default)s)"
    )


def _convert(arguments: argparse.Namespace) -> int:
    try:
        from cabochon_convert.convert import ConversionSettings, convert_checkpoint
    except ImportError as error:
        raise missing_dependency(str(error.name), "convert") from None
    if arguments.context_length is not None and arguments.context_length < 1:
        raise RequestError(f"--context-length is {arguments.context_length}, expected a positive number.")
    data = None
    if arguments.data is not None and not arguments.verify:
        raise RequestError(f"--data {arguments.data} is for verifying: say --verify too, or leave it out.")
    if arguments.verify:
        _refuse_unverifiable(arguments)
        data = _evaluation_data(arguments)
    recipe = RECIPES[arguments.recipe]
    if arguments.target == "litert" and (recipe.is_calibrated or recipe.keeps_integers):
        raise RequestError(f"the recipe {recipe.name} is for the target onnx only: choose another recipe.")
    if recipe.is_calibrated != (arguments.calibration is not None):
        raise RequestError(
            f"the recipe {recipe.name} needs data to calibrate on: name a folder with --calibration."
            if recipe.is_calibrated
            else f"the recipe {recipe.name} does not calibrate: leave --calibration out or choose another recipe."
        )
    if arguments.kv_cache != "float32" and arguments.target == "litert":
        raise RequestError("--kv-cache int8 is for the target onnx only, whose attention reads integers: leave it out.")
    if arguments.kv_cache != "float32" and arguments.drafter is not None:
        raise RequestError("a drafter reads caches of float32: leave out --kv-cache int8 or --drafter.")
    drafter = _drafter(arguments)
    source = _source(arguments)
    started = time.perf_counter()
    with ProgressBars() as progress:
        settings = ConversionSettings(
            recipe=recipe,
            target=arguments.target,
            context_length=arguments.context_length,
            text_only=arguments.text_only,
            without_vision=arguments.no_vision,
            replace=arguments.replace,
            drafter=drafter,
            kv_cache=arguments.kv_cache,
            calibration=_calibration(arguments, progress) if recipe.is_calibrated else None,
        )
        conversion = convert_checkpoint(source, arguments.output, settings, progress)
    for note in conversion.notes:
        print(f"note: {note}", file=sys.stderr)
    seconds = time.perf_counter() - started
    print(
        f"{conversion.folder}: {conversion.manifest.size / 1e6:.1f} MB, recipe {arguments.recipe}, in {seconds:.1f} s"
        + _peak_memory()
    )
    return _verify([arguments.output], source, data) if arguments.verify else 0


def _peak_memory() -> str:
    """What this process took at most, where the system tells."""
    try:
        import resource
    except ImportError:  # Windows
        return ""
    unit = 1 if sys.platform == "darwin" else 1024
    return f" and {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.2f} GB of memory"


def _refuse_unverifiable(arguments: argparse.Namespace) -> None:
    """Say before the conversion what would keep its result from being verified."""
    from cabochon_convert.verify import refuse_short_context

    if arguments.context_length is not None:
        refuse_short_context(arguments.context_length)


def _verify(packages: Sequence[Path], source: CheckpointSource, data: EvaluationData | None) -> int:
    from cabochon_convert.package import REPORT_PAGE_NAME
    from cabochon_convert.verify import verify_packages

    with ProgressBars() as progress:
        reports = verify_packages(packages, source, progress, data)
    for package, report in zip(packages, reports, strict=True):
        if len(packages) > 1:
            print(f"{package}, recipe {report.recipe}, {report.size / 1e6:.1f} MB")
        for name, value in report.summary().items():
            print(f"{name}: {value}")
        print(f"report: {package / REPORT_PAGE_NAME}")
    return 0 if all(report.passed for report in reports) else 1


def _source(arguments: argparse.Namespace) -> CheckpointSource:
    from cabochon_convert.source import find_adapter, find_source

    if arguments.lora is None and arguments.lora_revision is not None:
        raise RequestError(f"--lora-revision {arguments.lora_revision} is for an adapter: name it with --lora.")
    # The adapter is small, so that what is wrong with it is found before a model of gigabytes is fetched.
    adapter = find_adapter(arguments.lora, arguments.lora_revision) if arguments.lora is not None else None
    return replace(find_source(arguments.checkpoint, arguments.revision), adapter=adapter)


def _drafter(arguments: argparse.Namespace) -> CheckpointSource | None:
    from cabochon_convert.source import find_source

    if arguments.drafter is None:
        if arguments.drafter_revision is not None:
            raise RequestError(f"--drafter-revision {arguments.drafter_revision} is for a drafter: name it, too.")
        return None
    return find_source(arguments.drafter, arguments.drafter_revision, option="--drafter-revision")


def _evaluation_data(arguments: argparse.Namespace) -> EvaluationData | None:
    if arguments.data is None:
        return None
    from cabochon_convert.evaluation_data import read_evaluation_data

    return read_evaluation_data(arguments.data, language_name(arguments.language))


def _calibration(arguments: argparse.Namespace, progress: ProgressBars) -> Calibration:
    from cabochon_convert.calibration import Calibration
    from cabochon_convert.evaluation_data import read_evaluation_data

    return Calibration([read_evaluation_data(arguments.calibration, language_name(arguments.language))], progress)


class ProgressBars:
    """Progress as bars with rate and remaining time, on standard error and only for a person."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(finished=error is None)

    def start(self, stage: str, total: int, unit: str) -> None:
        """See `Progress.start`."""
        try:
            from tqdm import tqdm
        except ImportError:
            raise missing_dependency("tqdm", "convert") from None
        self._close(finished=True)
        # disable=None: no bar where standard error is not a terminal.
        self._bar = tqdm(total=total, unit=unit, unit_scale=True, desc=stage.ljust(22), disable=None)

    def advance(self, amount: int) -> None:
        """See `Progress.advance`."""
        if self._bar is not None:
            self._bar.update(amount)

    def _close(self, *, finished: bool) -> None:
        if self._bar is not None:
            # Tensors that have no use are not read, so a finished stage may stand short of its total.
            if finished and not self._bar.disable:
                self._bar.update(self._bar.total - self._bar.n)
            self._bar.close()
            self._bar = None
