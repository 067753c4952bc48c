"""The `cabochon` command with all that it can do. Only the modules cli*.py print."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import cabochon
from cabochon.cli_arguments import add_model_arguments, count, load_model, note_cut, print_answer
from cabochon.cli_serve import add_serve_command
from cabochon.cli_speech import add_speech_commands
from cabochon.cli_summary import add_summary_command
from cabochon.errors import CabochonError
from cabochon.package import Package, open_package
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

    add_speech_commands(commands)
    add_summary_command(commands)
    add_serve_command(commands)

    chat = commands.add_parser("chat", help="converse in text")
    add_model_arguments(chat, _chat)
    chat.add_argument("prompt", nargs="?", help="one question; without it, lines are read from standard input")
    chat.add_argument("--system", help="instruction that precedes the conversation")
    chat.add_argument("--greedy", action="store_true", help="always take the likeliest token")
    chat.add_argument("--seed", type=count, help="make the sampling repeatable")

    info = commands.add_parser("info", help="show what a package holds")
    info.add_argument("package", help="folder that cabochon-convert wrote")
    info.add_argument("--check", action="store_true", help="hash every file again")
    info.add_argument("--json", action="store_true", help="print the facts as JSON")
    info.set_defaults(command=_info)
    return parser


def _chat(arguments: argparse.Namespace) -> None:
    model, _ = load_model(arguments)
    sampling = model.package.manifest.sampling
    settings = SamplingSettings() if arguments.greedy else SamplingSettings.of_checkpoint(sampling, arguments.seed)
    messages = [Message("system", arguments.system)] if arguments.system else []
    for question in _questions(arguments.prompt):
        messages.append(Message("user", question))
        answer = model.chat(messages, settings, arguments.max_tokens)
        print_answer(answer)
        note_cut(answer)
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
