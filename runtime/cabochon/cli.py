"""The `cabochon` command with all that it can do. Only the modules cli*.py print."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import cabochon
from cabochon.cli_chat import add_chat_command
from cabochon.cli_introspection import add_introspection_commands
from cabochon.cli_serve import add_serve_command
from cabochon.cli_speech import add_speech_commands
from cabochon.cli_summary import add_summary_command
from cabochon.errors import FREE_MEMORY, CabochonError, is_memory_error
from cabochon.process_end import Terminated, end_as_signalled, tidy_termination


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 2 for an error that the user can mend, 1 for one found by doctor."""
    prepare_streams()
    parsed = _parse(arguments)
    command: Callable[[argparse.Namespace], int | None] = parsed.command
    with errors_in_one_sentence("cabochon") as outcome:
        outcome.status = command(parsed) or 0
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
        with tidy_termination():
            yield outcome
        if sys.stdout is not None:
            sys.stdout.flush()
    except CabochonError as error:
        outcome.status = 2
        print(f"{program}: {_printable(' '.join(str(error).split()))}", file=sys.stderr)
    except BrokenPipeError:
        # The reader went away, as with `| head`.
        outcome.status = 1
        _discard_output()
    except (ImportError, MemoryError, OSError, RuntimeError) as error:
        if isinstance(error, ImportError | RuntimeError) and not is_memory_error(error):
            raise
        outcome.status = 2
        print(f"{program}: {_printable(_system_sentence(error))}", file=sys.stderr)
        _discard_output()
    except Terminated as termination:
        outcome.status = 128 + termination.number
        sys.stderr.flush()
        end_as_signalled(termination.number)
    except KeyboardInterrupt:
        outcome.status = 130


def _printable(sentence: str) -> str:
    """A name in a file from elsewhere may hold what a terminal takes for commands."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in sentence)


def _system_sentence(error: Exception) -> str:
    if not isinstance(error, OSError) or is_memory_error(error):
        return f"memory ran out: {FREE_MEMORY}."
    # What cabochon reads and writes is checked where it happens; what has no name is the output.
    what = f"{error.filename} cannot be read or written" if error.filename else "the output cannot be written"
    return f"{what} ({error.strerror or ' '.join(str(error).split())})."


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

    add_introspection_commands(commands)
    return parser
