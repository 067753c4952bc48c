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
from cabochon.cli_chat import add_chat_command
from cabochon.cli_serve import add_serve_command
from cabochon.cli_speech import add_speech_commands
from cabochon.cli_summary import add_summary_command
from cabochon.errors import CabochonError
from cabochon.package import Package, open_package


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 for an error that the user can mend."""
    prepare_streams()
    parsed = _parse(arguments)
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


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    # Before Python 3.13 an optional argument was lost behind options: https://github.com/python/cpython/issues/59317.
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(parsed, "prompt", "") is None:
        parsed.prompt = rest[0]
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cabochon", description="Offline speech translation, transcription and chat with a converted Gemma 4."
    )
    parser.add_argument("--version", action="version", version=f"cabochon {cabochon.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    add_speech_commands(commands)
    add_summary_command(commands)
    add_serve_command(commands)

    add_chat_command(commands)

    info = commands.add_parser("info", help="show what a package holds")
    info.add_argument("package", help="folder that cabochon-convert wrote")
    info.add_argument("--check", action="store_true", help="hash every file again")
    info.add_argument("--json", action="store_true", help="print the facts as JSON")
    info.set_defaults(command=_info)
    return parser


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
