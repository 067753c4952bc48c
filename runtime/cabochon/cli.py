"""The `cabochon` command: transcribe, translate, chat and info. The only module of the runtime that prints."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

import cabochon
from cabochon.engines import ENGINES
from cabochon.errors import CabochonError
from cabochon.package import Package, open_package
from cabochon.pipeline import Answer, Model, Statistics, Translation
from cabochon.prompt import Message
from cabochon.sampling import SamplingSettings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 for an error that the user can mend."""
    prepare_streams()
    parsed = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = parsed.command
    with errors_in_one_sentence("cabochon") as outcome:
        command(parsed)
    return outcome.status


def prepare_streams() -> None:
    """Show what a terminal cannot encode as an escape, and keep stray bytes of the input for a later refusal."""
    for stream, errors in ((sys.stdout, "backslashreplace"), (sys.stdin, "surrogateescape")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


class Outcome:
    """The exit status of a command."""

    status = 0


@contextmanager
def errors_in_one_sentence(program: str) -> Iterator[Outcome]:
    """Print an expected error as one line and set the status; let bugs through."""
    outcome = Outcome()
    try:
        yield outcome
        if sys.stdout is not None:
            sys.stdout.flush()
    except CabochonError as error:
        outcome.status = 2
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
    except BrokenPipeError:
        # The reader went away, as with `| head`.
        outcome.status = 1
        _discard_output()
    except OSError as error:
        # What cabochon reads and writes is checked where it happens; what is left is the output.
        outcome.status = 2
        print(f"{program}: the output cannot be written ({error.strerror}).", file=sys.stderr)
        _discard_output()
    except KeyboardInterrupt:
        outcome.status = 130


def _discard_output() -> None:
    """Send what is still buffered nowhere; Python would complain again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cabochon", description="Offline speech translation, transcription and chat with a converted Gemma 4."
    )
    parser.add_argument("--version", action="version", version=f"cabochon {cabochon.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    transcribe = commands.add_parser("transcribe", help="write down what is said in a sound file")
    _add_common(transcribe, _transcribe)
    transcribe.add_argument("sound", help="WAV, FLAC, OGG or MP3 file")
    transcribe.add_argument("--language", help="spoken language, e.g. English or en (default: the model finds out)")
    _add_output(transcribe)

    translate = commands.add_parser("translate", help="transcribe a sound file and translate it")
    _add_common(translate, _translate)
    translate.add_argument("sound", help="WAV, FLAC, OGG or MP3 file")
    translate.add_argument(
        "--source", "--from", required=True, metavar="LANGUAGE", help="spoken language, e.g. English"
    )
    translate.add_argument("--target", "--to", required=True, metavar="LANGUAGE", help="wanted language, e.g. German")
    _add_output(translate)

    chat = commands.add_parser("chat", help="converse in text")
    _add_common(chat, _chat)
    chat.add_argument("prompt", nargs="?", help="one question; without it, lines are read from standard input")
    chat.add_argument("--system", help="instruction that precedes the conversation")
    chat.add_argument("--greedy", action="store_true", help="always take the likeliest token")
    chat.add_argument("--seed", type=_count, help="make the sampling repeatable")

    info = commands.add_parser("info", help="show what a package holds")
    info.add_argument("package", help="folder that cabochon-convert wrote")
    info.add_argument("--check", action="store_true", help="hash every file again")
    info.add_argument("--json", action="store_true", help="print the facts as JSON")
    info.set_defaults(command=_info)
    return parser


def _add_common(parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], None]) -> None:
    parser.set_defaults(command=command)
    parser.add_argument("package", help="folder that cabochon-convert wrote")
    parser.add_argument(
        "--engine", choices=ENGINES, default="", help="what runs the graphs (default: what the package was made for)"
    )
    parser.add_argument("--threads", type=_count, default=0, help="threads of one operation (default: all processors)")
    parser.add_argument("--context-length", type=_count, default=0, help="positions to make room for (default: all)")
    parser.add_argument(
        "--max-tokens", type=_positive_count, default=1024, help="longest answer (default: %(default)s)"
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of streaming text")
    parser.add_argument("--statistics", action="store_true", help="print times and speeds to standard error")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _positive_count(text: str) -> int:
    number = _count(text)
    if number == 0:
        raise argparse.ArgumentTypeError("0 is too little, expected 1 or more")
    return number


def _transcribe(arguments: argparse.Namespace) -> None:
    model, load_seconds = _load(arguments)
    answer = model.transcribe(arguments.sound, arguments.language, arguments.max_tokens)
    _show(answer, arguments, load_seconds, lambda: {"transcript": answer.text.strip()})


def _translate(arguments: argparse.Namespace) -> None:
    model, load_seconds = _load(arguments)
    answer = model.translate(
        arguments.sound, source=arguments.source, target=arguments.target, max_tokens=arguments.max_tokens
    )
    _show(answer, arguments, load_seconds, lambda: _translation_facts(answer))
    if answer.statistics.complete and not answer.translation:
        print("note: the model did not translate: it may not know the languages.", file=sys.stderr)


def _translation_facts(answer: Translation) -> dict[str, object]:
    return {"transcript": answer.transcript, "translation": answer.translation}


def _chat(arguments: argparse.Namespace) -> None:
    model, _ = _load(arguments)
    sampling = model.package.manifest.sampling
    settings = SamplingSettings() if arguments.greedy else SamplingSettings.of_checkpoint(sampling, arguments.seed)
    messages = [Message("system", arguments.system)] if arguments.system else []
    for question in _questions(arguments.prompt):
        messages.append(Message("user", question))
        answer = model.chat(messages, settings, arguments.max_tokens)
        _stream(answer)
        _note_cut(answer)
        messages.append(Message("assistant", answer.text))


def _questions(prompt: str | None) -> Iterator[str]:
    """The one prompt, or the lines of standard input with a sign when a person types them."""
    if prompt is not None:
        yield prompt
        return
    while sys.stdin is not None:
        if sys.stdin.isatty():
            print("> ", end="", flush=True, file=sys.stderr)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _info(arguments: argparse.Namespace) -> None:
    facts = _facts(open_package(arguments.package, check_again=arguments.check))
    if arguments.json:
        print(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        print(f"{name.replace('_', ' ').ljust(width)}  {'none' if shown is None else shown}")


def _facts(package: Package) -> dict[str, object]:
    manifest = package.manifest
    counts: dict[str, int] = {}
    for applied in manifest.recipe.precisions:
        storage = f"at {applied.bits} bit" + (f" in blocks of {applied.block_size}" if applied.block_size else "")
        counts[storage] = counts.get(storage, 0) + 1
    audio = manifest.audio
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
        "layers": manifest.text.layer_count,
        "hidden_size": manifest.text.hidden_size,
        "vocabulary_size": manifest.text.vocabulary_size,
        "context_length": manifest.text.context_length,
        "audio_seconds": audio.max_samples / audio.sample_rate if audio else None,
        "audio_sample_rate": audio.sample_rate if audio else None,
        "image_tokens": list(manifest.vision.soft_token_budgets) if manifest.vision else None,
        "files": len(manifest.files),
        "size_bytes": package.size,
    }


def _load(arguments: argparse.Namespace) -> tuple[Model, float]:
    started = time.perf_counter()
    model = cabochon.load(
        arguments.package,
        engine=arguments.engine,
        threads=arguments.threads,
        context_length=arguments.context_length,
    )
    return model, time.perf_counter() - started


def _show(
    answer: Answer, arguments: argparse.Namespace, load_seconds: float, facts: Callable[[], dict[str, object]]
) -> None:
    if answer.note:
        print(f"note: {answer.note}", file=sys.stderr)
    if arguments.json:
        answer.finish()
        statistics = asdict(answer.statistics) | {
            "load_seconds": load_seconds,
            "real_time_factor": answer.statistics.real_time_factor,
            "tokens_per_second": answer.statistics.tokens_per_second,
        }
        print(json.dumps(facts() | {"statistics": statistics}, ensure_ascii=False))
    else:
        _stream(answer)
    _note_cut(answer)
    if arguments.statistics:
        _print_statistics(answer.statistics, load_seconds)


def _note_cut(answer: Answer) -> None:
    if not answer.statistics.complete:
        print(f"note: the answer was cut after {answer.statistics.new_tokens} tokens.", file=sys.stderr)


def _stream(answer: Answer) -> None:
    for piece in answer:
        print(piece, end="", flush=True)
    print(flush=True)


def _print_statistics(statistics: Statistics, load_seconds: float) -> None:
    lines = {
        "load": f"{load_seconds:.2f} s",
        "audio": f"{statistics.audio_seconds:.2f} s, encoded in {statistics.encode_seconds:.3f} s",
        "prompt": f"{statistics.prompt_positions} positions in {statistics.prefill_seconds:.3f} s",
        "answer": f"{statistics.new_tokens} tokens in {statistics.decode_seconds:.3f} s",
        "speed": f"{statistics.tokens_per_second:.1f} tokens/s, real-time factor {statistics.real_time_factor:.3f}",
    }
    for name, value in lines.items():
        print(f"{name:7} {value}", file=sys.stderr)
