"""The `cabochon-convert` command. With the other `cli_*.py`, all of the converter that prints."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import cabochon
from cabochon.cli import errors_in_one_sentence, prepare_streams
from cabochon.engines import ENGINES
from cabochon.errors import RequestError, missing_dependency
from cabochon.languages import language_name
from cabochon.manifest import CACHE_STORAGE_BYTES
from cabochon_convert.cli_devices import (
    android_parser,
    bundle_for_device,
    bundle_for_litertlm,
    device_bundle_parser,
    litertlm_parser,
    write_assets,
)
from cabochon_convert.progress_bars import ProgressBars
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
            bundle_for_litertlm(litertlm_parser().parse_args(words[1:]))
        elif words[:1] == ["android"]:
            write_assets(android_parser().parse_args(words[1:]))
        elif words[:1] == ["bundle"]:
            bundle_for_device(device_bundle_parser().parse_args(words[1:]))
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
    parser.add_argument("--language", default="English", help="spoken in the folders of speech (default: %(default)s)")


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
