"""What commands share that go through a sound of any length: options, going on, progress. Like cli.py, it prints."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cabochon
from cabochon.cli_arguments import seconds
from cabochon.errors import RequestError, missing_dependency
from cabochon.long_speech import LongSpeech, SpokenPart
from cabochon.manifest import MANIFEST_NAME
from cabochon.package import hash_file
from cabochon.pipeline import Model
from cabochon.segmentation import Segmentation
from cabochon.transcript import FORMATS, clock, transcript_format
from cabochon.unfinished import Unfinished
from cabochon.whole_file import replace_text


def add_length(parser: argparse.ArgumentParser) -> None:
    """Where a long sound is cut, and the file that it becomes."""
    add_segmentation(parser)
    parser.add_argument(
        "--output", type=Path, metavar="FILE",
        help=f"write a file ({', '.join(FORMATS)}); when it was interrupted, the same command goes on",
    )  # fmt: skip
    parser.add_argument("--replace", action="store_true", help="overwrite the output if it exists")


def add_segmentation(parser: argparse.ArgumentParser) -> None:
    """Where speech is cut."""
    defaults = Segmentation()
    parser.add_argument(
        "--pause", type=seconds, default=defaults.pause, metavar="SECONDS",
        help="silence at which a long sound is cut (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--longest", type=seconds, default=defaults.longest, metavar="SECONDS",
        help="longest part of a long sound (default: %(default)s)",
    )  # fmt: skip


def check_output(arguments: argparse.Namespace) -> None:
    """Refuse an output that cannot be written before the minutes that a long sound takes."""
    if arguments.output is not None:
        transcript_format(arguments.output)
        check_new(arguments.output, arguments)


def check_new(output: Path, arguments: argparse.Namespace) -> None:
    """Refuse a file that exists, unless it may be replaced, or that has no folder."""
    if output.exists() and not arguments.replace:
        raise RequestError(f"{output} exists already: choose another name, or add --replace.")
    if not output.absolute().parent.is_dir():
        raise RequestError(f"{output} cannot be written, because its folder does not exist: make it first.")


@dataclass(frozen=True, slots=True)
class HeardParts:
    """A long sound that was heard to its end."""

    parts: list[SpokenPart]
    """All of them, those of an interrupted run included."""
    seconds: float
    """Of the sound, as far as it was heard now."""
    spent: float
    """Seconds of work."""

    @property
    def statistics(self) -> str:
        """What `--statistics` tells of them."""
        factor = self.spent / self.seconds if self.seconds else 0.0
        return f"{self.seconds:.1f} s in {self.spent:.1f} s, real-time factor {factor:.3f}"


def hear_parts(
    understand: Callable[..., LongSpeech],
    arguments: argparse.Namespace,
    kept: Unfinished | None,
    show: Callable[[SpokenPart], None] | None = None,
    *,
    has_bar: bool,
) -> HeardParts:
    """Hear a long sound to its end.

    Args:
        understand: what `transcribe_long` or `translate_long` takes but for the model, the sound and the languages.
        arguments: of a command with `add_length`.
        kept: where new parts are kept, and what is left of an interrupted run.
        show: is told each new part.
        has_bar: whether a terminal sees how far it is.
    """
    parts = list(kept.parts) if kept else []
    start = parts[-1].end if parts else 0.0
    segmentation = Segmentation(pause=arguments.pause, longest=arguments.longest)
    speech = understand(segmentation=segmentation, start=start, max_tokens=arguments.max_tokens)
    for note in (speech.note, f"going on at {clock(start, '.')}." if parts else ""):
        if note:
            print(f"note: {note}", file=sys.stderr)
    started = time.perf_counter()
    try:
        with progress_bar(speech.seconds, "s", start, is_shown=has_bar) as bar:
            for part in speech:
                bar.update(part.end - bar.n)
                parts.append(part)
                if kept:
                    kept.add(part)
                if show:
                    show(part)
    except KeyboardInterrupt:
        if kept:
            print(f"note: interrupted at {clock(bar.n, '.')}: the same command goes on from there.", file=sys.stderr)
        raise
    return HeardParts(parts, speech.seconds - start, time.perf_counter() - started)


def find_unfinished(model: Model, arguments: argparse.Namespace) -> Unfinished | None:
    """What is left of the same work, or its beginning; None where no output is to be written."""
    if arguments.output is None:
        return None
    return Unfinished(arguments.output, _work(model, arguments))


def _work(model: Model, arguments: argparse.Namespace) -> dict[str, object]:
    """What decides about the parts of a long sound."""
    segmentation = Segmentation(pause=arguments.pause, longest=arguments.longest)
    languages = [getattr(arguments, name, None) for name in ("language", "source", "target")]
    return {
        "sound": hash_file(Path(arguments.sound)),
        "package": hash_file(model.package.path(MANIFEST_NAME)),
        "languages": languages,
        "segmentation": asdict(segmentation),
        "max_tokens": arguments.max_tokens,
        "version": cabochon.__version__,
    }


def progress_bar(total: float, unit: str, start: float = 0.0, *, is_shown: bool) -> Any:
    """A bar of tqdm's, on a terminal."""
    try:
        from tqdm import tqdm
    except ImportError:
        raise missing_dependency("tqdm", "onnx") from None
    # disable=None: no bar where standard error is not a terminal.
    return tqdm(total=total, initial=start, unit=unit, unit_scale=True, disable=None if is_shown else True)


def write_output(path: Path, text: str) -> None:
    """Write a file whole."""
    try:
        replace_text(path, text)
    except OSError as error:
        raise RequestError(f"{path} cannot be written ({error.strerror}).") from None


def note_parts(parts: Sequence[SpokenPart], arguments: argparse.Namespace) -> None:
    """Say so where parts are not all that was asked for."""
    cut = sum(not part.complete for part in parts)
    if cut:
        print(f"note: {cut} answers were cut after {arguments.max_tokens} tokens.", file=sys.stderr)
    untranslated = sum(part.complete and not part.translation for part in parts)
    if untranslated and getattr(arguments, "target", None):
        print(f"note: {untranslated} of {len(parts)} parts were not translated.", file=sys.stderr)
