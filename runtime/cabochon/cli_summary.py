"""The command that answers a wish about a whole sound or transcript. Like cli.py, it prints."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from cabochon.answer import Answer
from cabochon.cli_arguments import (
    add_model_arguments,
    add_reporting,
    decoding_lines,
    load_model,
    note_cut,
    print_answer,
    print_drafts,
    print_statistics,
    statistics_facts,
)
from cabochon.cli_long_speech import (
    HeardParts,
    add_length,
    check_new,
    check_output,
    find_unfinished,
    hear_parts,
    note_parts,
    progress_bar,
    write_output,
)
from cabochon.long_speech import SpokenPart, transcribe_long
from cabochon.pipeline import Model
from cabochon.summary import SUMMARY, Wish
from cabochon.transcript import format_json, read_transcript, transcript_format
from cabochon.unfinished import Unfinished
from cabochon.wav import SoundFile


def add_summary_command(commands: Any) -> None:
    """Args: commands: argparse's subparsers."""
    summarize = commands.add_parser(
        "summarize", allow_abbrev=False, help="summarize a sound file, or answer what you ask about it"
    )
    add_model_arguments(summarize, _summarize)
    summarize.add_argument("sound", help="WAV, FLAC, OGG or MP3 file, or the .json file of a transcript")
    summarize.add_argument(
        "--ask", metavar="REQUEST", help=f"what you want to know, in your own words (default: {SUMMARY})"
    )
    # Of the same name as transcribe's, so that an interrupted transcript can be gone on with.
    summarize.add_argument(
        "--from", dest="language", metavar="LANGUAGE", help="spoken language (default: the model finds out)"
    )
    summarize.add_argument(
        "--in", dest="answer_language", metavar="LANGUAGE",
        help="language of the answer (default: that of your request; of a summary, the spoken one)",
    )  # fmt: skip
    add_length(summarize)
    add_reporting(summarize)


def _summarize(arguments: argparse.Namespace) -> None:
    check_output(arguments)
    beside = _summary_path(arguments.output) if arguments.output is not None else None
    if beside is not None:
        check_new(beside, arguments)
    source = Path(arguments.sound)
    saved = read_transcript(source) if source.suffix.lower() == ".json" else None
    model, load_seconds = load_model(arguments)
    wish = Wish(model, arguments.ask, arguments.answer_language, arguments.max_tokens)
    if saved is None:
        SoundFile(source, model.audio_model.sample_rate)  # refuses what is no sound
    kept = find_unfinished(model, arguments)
    heard = HeardParts(saved, 0.0, 0.0) if saved is not None else _heard(model, arguments, kept)
    if kept and not heard.parts:
        kept.forget()
    started = time.perf_counter()
    answer = _answer(wish, heard.parts, kept)
    note_seconds = time.perf_counter() - started
    if not arguments.json:
        print_answer(answer)
    summary = answer.finish().strip()
    if kept:
        _write(arguments.output, beside, heard.parts, summary)
        kept.forget()
    if arguments.json:
        facts = {"summary": summary, "parts": [asdict(part) for part in heard.parts]}
        statistics = statistics_facts(answer.statistics, model, load_seconds)
        print(json.dumps(facts | {"statistics": statistics}, ensure_ascii=False))
    note_parts(heard.parts, arguments)
    note_cut(answer)
    if arguments.statistics:
        _print_statistics(answer, heard, load_seconds, note_seconds)
        print_drafts(model)


def _heard(model: Model, arguments: argparse.Namespace, kept: Unfinished | None) -> HeardParts:
    understand = partial(transcribe_long, model, arguments.sound, arguments.language)
    return hear_parts(understand, arguments, kept, has_bar=True)


def _answer(wish: Wish, parts: list[SpokenPart], kept: Unfinished | None) -> Answer:
    """The answer, once its notes are written."""
    notes: MutableMapping[str, str] = kept.notes if kept else {}
    try:
        with _note_bar() as progress:
            return wish.answer(parts, notes, progress)
    except KeyboardInterrupt:
        if kept:
            print(f"note: interrupted after {len(notes)} notes: the same command goes on from there.", file=sys.stderr)
        raise


@contextmanager
def _note_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar for each round of notes, on a terminal; none where what was said fits the context."""
    with ExitStack() as bars:
        bar: Any = None

        def show(written: int, of: int) -> None:
            nonlocal bar
            if written == 0:
                bar = bars.enter_context(progress_bar(of, " notes", is_shown=True))
            bar.update(written - bar.n)

        yield show


def _summary_path(output: Path) -> Path | None:
    """Where the summary goes that belongs to a transcript; None: into the same file."""
    return None if output.suffix.lower() == ".json" else output.with_suffix(".summary.txt")


def _write(output: Path, beside: Path | None, parts: list[SpokenPart], summary: str) -> None:
    if beside is None:
        write_output(output, format_json(parts, summary))
        return
    write_output(beside, f"{summary}\n")
    write_output(output, transcript_format(output)(parts))


def _print_statistics(answer: Answer, heard: HeardParts, load_seconds: float, note_seconds: float) -> None:
    audio = {"audio": heard.statistics} if heard.spent else {}
    print_statistics(
        {"load": f"{load_seconds:.2f} s"}
        | audio
        | {"notes": f"{note_seconds:.2f} s"}
        | decoding_lines(answer.statistics)
    )
