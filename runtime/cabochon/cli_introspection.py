"""The commands that look at a package and a machine: info, bench and doctor. Like cli.py, it prints."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cabochon.backend import EngineSettings
from cabochon.bench import BenchResult, BenchSettings, Measurement, measure_package
from cabochon.cli_arguments import (
    add_context_length,
    add_engine,
    add_threads,
    count,
    positive_count,
    seconds,
)
from cabochon.cli_long_speech import progress_bar
from cabochon.doctor import CONSTRAINTS, diagnose, gigabytes, judge_library
from cabochon.energy import EnergyMeter, WattCommand, find_meter
from cabochon.engines import ENGINES
from cabochon.finding import Finding
from cabochon.memory_cost import MemoryCost, compute_memory_cost
from cabochon.package import Package, open_package


def add_introspection_commands(commands: Any) -> None:
    """Args: commands: argparse's subparsers."""
    info = commands.add_parser("info", allow_abbrev=False, help="show what a package holds, and what memory it takes")
    info.add_argument("package", help="folder that cabochon-convert wrote")
    info.add_argument("--check", action="store_true", help="hash every file again")
    info.add_argument("--json", action="store_true", help="print the facts as JSON")
    add_context_length(info)
    info.set_defaults(command=_info)
    _add_bench(commands)
    doctor = commands.add_parser(
        "doctor", allow_abbrev=False, help="see whether this machine can run cabochon, and a package"
    )
    doctor.add_argument("package", nargs="?", type=Path, help="folder that cabochon-convert wrote")
    add_engine(doctor)
    add_context_length(doctor)
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.set_defaults(command=_doctor)


def _add_bench(commands: Any) -> None:
    defaults = BenchSettings()
    bench = commands.add_parser(
        "bench", allow_abbrev=False, help="measure how fast a package runs here, and what it takes"
    )
    bench.set_defaults(command=_bench)
    bench.add_argument("package", help="folder that cabochon-convert wrote")
    add_engine(bench)
    add_threads(bench)
    add_context_length(bench)
    bench.add_argument(
        "--prompts", type=positive_count, nargs="+", default=defaults.prompts, metavar="POSITIONS",
        help=f"lengths of prompts (default: {_listed(defaults.prompts)})",
    )  # fmt: skip
    bench.add_argument(
        "--depths", type=positive_count, nargs="+", default=defaults.depths, metavar="POSITIONS",
        help=f"positions behind which to decode (default: {_listed(defaults.depths)})",
    )  # fmt: skip
    bench.add_argument(
        "--tokens", type=positive_count, default=defaults.tokens, help="decoded in a round (default: %(default)s)"
    )
    bench.add_argument(
        "--seconds", type=seconds, default=defaults.sound_seconds,
        help="length of the sound; 0 leaves the audio encoder out (default: %(default)s)",
    )  # fmt: skip
    bench.add_argument(
        "--image-tokens", type=count, default=defaults.image_tokens, help="budget of the image (default: the smallest)"
    )
    bench.add_argument(
        "--rounds", type=positive_count, default=defaults.rounds, help="of everything (default: %(default)s)"
    )
    bench.add_argument(
        "--time-limit", type=seconds, default=defaults.time_limit, metavar="SECONDS",
        help="begin nothing new after this (default: %(default)s)",
    )  # fmt: skip
    bench.add_argument(
        "--watts",
        metavar="COMMAND",
        help="a command of yours that prints the watts of this moment (default: RAPL, or a Pi 5's power management)",
    )
    form = bench.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--markdown", action="store_true", help="print a table for a page")


def _info(arguments: argparse.Namespace) -> None:
    package = open_package(arguments.package, check_again=arguments.check)
    facts, costs = _facts(package), _costs(package, arguments.context_length)
    sizes = {record.path: record.size for record in package.manifest.files}
    if arguments.json:
        facts |= {"file_sizes": sizes, "memory": {name: _cost_facts(cost) for name, cost in costs.items()}}
        print(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        print(f"{name.replace('_', ' ').ljust(width)}  {'none' if shown is None else shown}")
    for path, size in sizes.items():
        print(f"{'':{width}}  {gigabytes(size):>9}  {path}")
    for cost in costs.values():
        print(f"\nmemory with {cost.engine} and {cost.context_length} positions, computed")
        for name, size in _cost_lines(cost).items():
            print(f"{name.ljust(width)}  {gigabytes(size):>9}")


def _costs(package: Package, context_length: int) -> dict[str, MemoryCost]:
    """Of every engine that this version knows."""
    known = [name for name in package.manifest.engines if name in ENGINES]
    return {name: compute_memory_cost(package.manifest, name, context_length) for name in known}


def _cost_lines(cost: MemoryCost) -> dict[str, int]:
    parts = cost.parts
    lines = {
        "runtime": parts.runtime,
        "decoder": parts.decoder_weights,
        "caches": parts.caches,
        "activations": parts.activations,
        "prompt": parts.prompt,
        "drafter": parts.drafter_weights,
        "drafts": parts.drafter_activations,
        "audio encoder": parts.audio_weights,
        "sound": parts.audio_activations,
        "vision encoder": parts.vision_weights,
        "image": parts.vision_activations,
        "of these mapped": cost.mapped,
        "1000 positions more": cost.cache_per_1000_positions,
        "while loading": cost.loading,
        "text only": cost.text,
        "text and sound": cost.sound or 0,
        "text and images": cost.image or 0,
        "everything": cost.everything,
    }
    return {name: size for name, size in lines.items() if size}


def _cost_facts(cost: MemoryCost) -> dict[str, object]:
    parts = {f"{name}_bytes": size for name, size in asdict(cost.parts).items()}
    return {
        "computed": True,
        "context_length": cost.context_length,
        **parts,
        "cache_bytes_per_1000_positions": cost.cache_per_1000_positions,
        "mapped_bytes": cost.mapped,
        "loading_bytes": cost.loading,
        "text_bytes": cost.text,
        "sound_bytes": cost.sound,
        "image_bytes": cost.image,
        "everything_bytes": cost.everything,
    }


def _facts(package: Package) -> dict[str, object]:
    manifest = package.manifest
    counts: dict[str, int] = {}
    for applied in manifest.recipe.precisions:
        storage = f"at {applied.bits} bit" + (f" in blocks of {applied.block_size}" if applied.block_size else "")
        counts[storage] = counts.get(storage, 0) + 1
    audio = manifest.audio
    drafter = next((engine.drafter for engine in manifest.engines.values() if engine.drafter), None)
    return {
        "checkpoint": manifest.source.name,
        "revision": manifest.source.revision,
        "adapter": manifest.source.adapter.name if manifest.source.adapter else None,
        "architecture": manifest.source.architecture,
        "checkpoint_sha256": manifest.source.sha256,
        "converted_by": manifest.created_by,
        "recipe": manifest.recipe.name,
        "weight_matrices": [f"{count} {storage}" for storage, count in sorted(counts.items())],
        "skipped_tensors": len(manifest.source.skipped_tensors),
        "engines": list(manifest.engines),
        "drafter": drafter.source.name if drafter else None,
        "recommended_drafts": drafter.recommended_drafts or None if drafter else None,
        "layers": manifest.text.layer_count,
        "hidden_size": manifest.text.hidden_size,
        "vocabulary_size": manifest.text.vocabulary_size,
        "context_length": manifest.text.context_length,
        "audio_seconds": audio.max_samples / audio.sample_rate if audio else None,
        "audio_sample_rate": audio.sample_rate if audio else None,
        "image_tokens": list(manifest.vision.soft_token_budgets) if manifest.vision else None,
        "tools_and_forms": _constraints(),
        "files": len(manifest.files),
        "size_bytes": package.size,
    }


def _constraints() -> str:
    """Whether tools and answers in a form can be asked for on this machine, or what to do."""
    finding = judge_library(CONSTRAINTS, "warning")
    return f"{finding.name} {finding.found}{f': {finding.advice}' if finding.advice else ''}"


def _bench(arguments: argparse.Namespace) -> None:
    settings = BenchSettings(
        prompts=tuple(arguments.prompts),
        depths=tuple(arguments.depths),
        tokens=arguments.tokens,
        sound_seconds=arguments.seconds,
        image_tokens=arguments.image_tokens,
        rounds=arguments.rounds,
        time_limit=arguments.time_limit,
    )
    engine_settings = EngineSettings(arguments.threads, arguments.context_length, arguments.pin_threads)
    package = open_package(arguments.package)
    print(
        f"note: made-up prompts of {_listed(settings.prompts)} positions, {settings.tokens} tokens behind "
        f"{_listed(settings.depths)}, {settings.sound_seconds:g} s of sound and an image, as far as the package can; "
        f"{settings.rounds} rounds, nothing new after {settings.time_limit:g} s.",
        file=sys.stderr,
    )
    with ExitStack() as stack:
        meter = _open_meter(arguments.watts)
        if meter:
            stack.callback(meter.close)
        bar: Any = None

        def show(done: int, total: int, what: str) -> None:
            nonlocal bar
            if bar is None:
                bar = stack.enter_context(progress_bar(total, " rounds", is_shown=True))
            bar.set_description(what)
            bar.update(done - bar.n)

        result = measure_package(package, arguments.engine, engine_settings, settings, meter, show)
    if arguments.json:
        print(json.dumps(_bench_facts(result), indent=1, ensure_ascii=False))
    else:
        _print_bench(result, as_markdown=arguments.markdown)


def _open_meter(watts: str | None) -> EnergyMeter | None:
    words = shlex.split(watts) if watts else []
    return WattCommand(words) if words else find_meter()


def _bench_facts(result: BenchResult) -> dict[str, object]:
    facts = asdict(result)
    for measurement, found in zip(facts["measurements"], result.measurements, strict=True):
        measurement |= {"median": found.median, "lowest": min(found.values), "highest": max(found.values)}
    return facts


def _print_bench(result: BenchResult, *, as_markdown: bool) -> None:
    loaded, peak = (gigabytes(size) for size in (result.loaded_bytes, result.peak_bytes))
    print(
        f"{result.package}, recipe {result.recipe}, {result.library}, {result.threads} threads of {result.processor}, "
        f"context of {result.context_length} positions: loaded in {result.load_seconds:.2f} s, resident {loaded}, "
        f"at most {peak}{', energy from ' + result.energy_source if result.energy_source else ''}"
    )
    rows = [_bench_row(each) for each in result.measurements]
    head = ("what", "median", "range", "joules")
    columns = 4 if result.energy_source else 3
    if as_markdown:
        print(f"\n| {' | '.join(head[:columns])} |\n|{'---|' * columns}")
        for row in rows:
            print(f"| {' | '.join(row[:columns])} |")
    else:
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        for row in (head, *rows):
            print(
                "  ".join(cell.ljust(width) for cell, width in list(zip(row, widths, strict=True))[:columns]).rstrip()
            )
    for each in result.skipped:
        print(f"note: left out: {each}.", file=sys.stderr)


def _bench_row(measurement: Measurement) -> tuple[str, str, str, str]:
    values = measurement.values
    joules = sorted(measurement.joules)
    return (
        f"{measurement.name}, {measurement.amount:g} {measurement.unit}",
        f"{measurement.median:.4g} {measurement.quantity}",
        f"{min(values):.4g} to {max(values):.4g}",
        f"{joules[len(joules) // 2]:.3g}" if joules else "",
    )


def _doctor(arguments: argparse.Namespace) -> int:
    """Returns the exit status: 1 where there is a problem."""
    found: list[Finding] = []
    for finding in diagnose(arguments.package, arguments.engine, arguments.context_length):
        found.append(finding)
        if not arguments.json:
            print(f"{finding.status:8} {finding.name}: {finding.found}", flush=True)
            if finding.advice:
                print(f"{'':8}   {finding.advice}", flush=True)
    has_problem = any(finding.status == "problem" for finding in found)
    if arguments.json:
        facts = {"ok": not has_problem, "findings": [asdict(finding) for finding in found]}
        print(json.dumps(facts, indent=1, ensure_ascii=False))
    return int(has_problem)


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
