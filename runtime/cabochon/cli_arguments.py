"""What several commands take, and how a model is loaded for them."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict

import cabochon
from cabochon.answer import Answer, Statistics
from cabochon.engines import ENGINES
from cabochon.pipeline import Model
from cabochon.process_end import explain_crashes


def add_model_arguments(parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], None]) -> None:
    """The package, how it is run, and the function that runs the command."""
    parser.set_defaults(command=command)
    parser.add_argument("package", help="folder that cabochon-convert wrote")
    add_engine(parser)
    add_threads(parser)
    add_context_length(parser)
    add_drafts(parser)
    parser.add_argument("--max-tokens", type=positive_count, default=1024, help="longest answer (default: %(default)s)")


def add_engine(parser: argparse.ArgumentParser) -> None:
    """What runs the graphs."""
    parser.add_argument(
        "--engine", choices=ENGINES, default="", help="what runs the graphs (default: what the package was made for)"
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    """How many it uses, and where."""
    parser.add_argument("--threads", type=count, default=0, help="threads of one operation (default: all processors)")
    parser.add_argument("--pin-threads", action="store_true", help="keep each of the engine's threads on one processor")


def add_context_length(parser: argparse.ArgumentParser) -> None:
    """How long a conversation may become."""
    parser.add_argument("--context-length", type=count, default=0, help="positions to make room for (default: all)")


def add_drafts(parser: argparse.ArgumentParser) -> None:
    """How far a drafter guesses ahead."""
    parser.add_argument(
        "--drafts",
        type=drafts,
        metavar="N|auto|0",
        help="tokens that a drafter guesses at a time, if the package has one (default: auto, which measures)",
    )


def add_reporting(parser: argparse.ArgumentParser) -> None:
    """What is told of an answer beside its text."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of streaming text")
    parser.add_argument("--statistics", action="store_true", help="print times and speeds to standard error")


def count(text: str) -> int:
    """A whole number, 0 included."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def drafts(text: str) -> int | None:
    """A whole number, or None for `auto`."""
    return None if text == "auto" else count(text)


def positive_count(text: str) -> int:
    """A whole number from 1 on."""
    number = count(text)
    if number == 0:
        raise argparse.ArgumentTypeError("0 is too little, expected 1 or more")
    return number


def seconds(text: str) -> float:
    """A finite number that is not negative."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return number


def number(text: str) -> float:
    """Any finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def load_model(arguments: argparse.Namespace) -> tuple[Model, float]:
    """The model, and how many seconds it took."""
    started = time.perf_counter()
    explain_crashes("cabochon")
    model = cabochon.load(
        arguments.package,
        engine=arguments.engine,
        threads=arguments.threads,
        context_length=arguments.context_length,
        drafts=arguments.drafts,
        pin_threads=arguments.pin_threads,
    )
    return model, time.perf_counter() - started


def note_cut(answer: Answer) -> None:
    """Say so where an answer was cut."""
    if not answer.statistics.complete:
        reason = ": the context is full" if answer.statistics.context_full else ""
        print(f"note: the answer was cut after {answer.statistics.new_tokens} tokens{reason}.", file=sys.stderr)


def statistics_facts(statistics: Statistics, model: Model, load_seconds: float) -> dict[str, object]:
    """What `--json` tells; drafts are those of all answers that the command asked for."""
    spent = model.spent
    return asdict(statistics) | {
        "load_seconds": load_seconds,
        "real_time_factor": statistics.real_time_factor,
        "tokens_per_second": statistics.tokens_per_second,
        "drafts": asdict(spent.drafts) if spent.drafts else None,
        "draft_speed_up": spent.draft_speed_up,
    }


def print_statistics(lines: Mapping[str, str]) -> None:
    """Values by what they are, to standard error."""
    for name, value in lines.items():
        print(f"{name:7} {value}", file=sys.stderr)


def decoding_lines(statistics: Statistics) -> dict[str, str]:
    """What `--statistics` tells of any answer."""
    return {
        "prompt": f"{statistics.prompt_positions} positions in {statistics.prefill_seconds:.3f} s",
        "answer": f"{statistics.new_tokens} tokens in {statistics.decode_seconds:.3f} s",
    }


def print_drafts(model: Model) -> None:
    """What the drafts of all answers that the command asked for were worth; nothing without a drafter."""
    spent = model.spent
    if spent.drafts is not None:
        speed_up = f", {spent.draft_speed_up:.2f} times as fast" if spent.draft_speed_up else ""
        print_statistics({"drafts": f"{spent.drafts.accepted} of {spent.drafts.drafted} accepted{speed_up}"})


def print_answer(answer: Answer) -> None:
    """Print an answer as it comes."""
    for piece in answer:
        print(piece, end="", flush=True)
    print(flush=True)
