"""The commands that hear: transcribe, translate and listen. Like cli.py, it prints."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from cabochon.answer import Answer, Statistics, Translation
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
    add_length,
    add_segmentation,
    check_output,
    find_unfinished,
    hear_parts,
    note_parts,
    write_output,
)
from cabochon.errors import AudioError, RequestError
from cabochon.live_speech import Confirmed, Lost, Pending, Question, listen
from cabochon.long_speech import LongSpeech, SpokenPart, start_segmenter, transcribe_long, translate_long
from cabochon.microphone import FileSource, Recording, open_microphone
from cabochon.pipeline import Model
from cabochon.segmentation import Segmentation
from cabochon.speech_task import SpeechTask
from cabochon.transcript import clock, transcript_format
from cabochon.wav import SoundFile


def add_speech_commands(commands: Any) -> None:
    """Args: commands: argparse's subparsers."""
    transcribe = commands.add_parser("transcribe", allow_abbrev=False, help="write down what is said in a sound file")
    add_model_arguments(transcribe, _transcribe)
    transcribe.add_argument("sound", help="WAV, FLAC, OGG or MP3 file")
    transcribe.add_argument("--language", help="spoken language, e.g. English or en (default: the model finds out)")
    add_length(transcribe)
    add_reporting(transcribe)

    translate = commands.add_parser("translate", allow_abbrev=False, help="transcribe a sound file and translate it")
    add_model_arguments(translate, _translate)
    translate.add_argument("sound", help="WAV, FLAC, OGG or MP3 file")
    translate.add_argument(
        "--source", "--from", required=True, metavar="LANGUAGE", help="spoken language, e.g. English"
    )
    translate.add_argument("--target", "--to", required=True, metavar="LANGUAGE", help="wanted language, e.g. German")
    add_length(translate)
    add_reporting(translate)

    live = commands.add_parser(
        "listen", allow_abbrev=False, help="write down what is said into the microphone, and translate it"
    )
    add_model_arguments(live, _listen)
    live.add_argument("--source", "--from", metavar="LANGUAGE", help="spoken language (needed to translate)")
    live.add_argument("--target", "--to", metavar="LANGUAGE", help="translate into this language")
    live.add_argument("--device", metavar="NAME", help="microphone (default: the system's)")
    live.add_argument("--input", type=Path, metavar="FILE", help="hear a sound file at its own pace instead")
    live.add_argument(
        "--speak", metavar="COMMAND",
        help="say each answer with a command that reads text, e.g. 'espeak-ng -v de --stdin'",
    )  # fmt: skip
    live.add_argument("--no-guesses", action="store_true", help="show nothing before a part has ended")
    live.add_argument("--json", action="store_true", help="print a JSON object for each part")
    add_segmentation(live)


def _transcribe(arguments: argparse.Namespace) -> None:
    check_output(arguments)
    model, load_seconds = load_model(arguments)
    if _is_long(arguments, model):
        _go_through(
            partial(transcribe_long, model, arguments.sound, arguments.language), model, arguments, load_seconds
        )
        return
    answer = model.transcribe(arguments.sound, arguments.language, arguments.max_tokens)
    _show(answer, model, arguments, load_seconds, lambda: {"transcript": answer.text.strip()})


def _translate(arguments: argparse.Namespace) -> None:
    check_output(arguments)
    model, load_seconds = load_model(arguments)
    if _is_long(arguments, model):
        understand = partial(translate_long, model, arguments.sound, source=arguments.source, target=arguments.target)
        _go_through(understand, model, arguments, load_seconds)
        return
    answer = model.translate(
        arguments.sound, source=arguments.source, target=arguments.target, max_tokens=arguments.max_tokens
    )
    _show(answer, model, arguments, load_seconds, lambda: _translation_facts(answer))
    if answer.statistics.complete and not answer.translation:
        print("note: the model did not translate: it may not know the languages.", file=sys.stderr)


def _translation_facts(answer: Translation) -> dict[str, object]:
    return {"transcript": answer.transcript, "translation": answer.translation}


def _listen(arguments: argparse.Namespace) -> None:
    speaker = shlex.split(arguments.speak) if arguments.speak else []
    if speaker and shutil.which(speaker[0]) is None:
        raise RequestError(f"{speaker[0]} is not a command that can be found: install it, or leave --speak out.")
    segmentation = Segmentation(pause=arguments.pause, longest=arguments.longest)
    model, _ = load_model(arguments)
    audio, question = model.audio_model, _question(model, arguments)
    rate = audio.sample_rate
    segmenter = start_segmenter(audio, segmentation)
    source = FileSource(arguments.input, rate) if arguments.input else open_microphone(rate, arguments.device)
    shows_guesses = sys.stdout.isatty() and not arguments.json
    with Recording(source, rate) as recording, _stopped_by_interrupt(recording):
        print("note: listening; Ctrl-C ends it.", file=sys.stderr)
        guess = shows_guesses and not arguments.no_guesses
        for event in listen(recording, segmenter, question, rate, guess=guess):
            if isinstance(event, Lost):
                print(f"note: {event.seconds:.1f} s were not heard: the model is too slow.", file=sys.stderr)
            elif isinstance(event, Pending):
                if shows_guesses:
                    _show_pending(event.text)
            else:
                _show_confirmed(event, arguments, shows_guesses=shows_guesses)
                if speaker:
                    with recording.muted():
                        _speak(speaker, event.part.translation or event.part.transcript)
        if recording.failure:
            raise AudioError(f"{recording.failure}: choose another microphone with --device.")


def _question(model: Model, arguments: argparse.Namespace) -> Question:
    """What to ask about each part; languages are refused before anybody speaks."""
    if arguments.target is not None and arguments.source is None:
        raise RequestError("to translate, the model has to know the spoken language: add --from.")
    return SpeechTask(model, arguments.source, arguments.target, arguments.max_tokens).question()


@contextmanager
def _stopped_by_interrupt(recording: Recording) -> Iterator[None]:
    """The first Ctrl-C ends the recording, so that what was said is still answered; the second ends the program."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        # Elsewhere, because what it waits for may be waiting for what was interrupted here.
        threading.Thread(target=recording.stop).start()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _show_pending(text: str) -> None:
    """On one line, whose end is what matters, to be written over."""
    line = " ".join(text.split())
    print(f"\r\x1b[2K\x1b[2m{line[-(shutil.get_terminal_size().columns - 1) :]}\x1b[0m", end="", flush=True)


def _show_confirmed(event: Confirmed, arguments: argparse.Namespace, *, shows_guesses: bool) -> None:
    if shows_guesses:
        print("\r\x1b[2K", end="")
    if arguments.json:
        print(json.dumps(asdict(event.part) | {"delay": event.delay}, ensure_ascii=False), flush=True)
        return
    for line in (event.part.transcript, event.part.translation):
        if line:
            print(line, flush=True)


def _speak(command: Sequence[str], text: str) -> None:
    outcome = subprocess.run(command, input=text, text=True, stdout=subprocess.DEVNULL, check=False)
    if outcome.returncode:
        print(f"note: {command[0]} ended with status {outcome.returncode}.", file=sys.stderr)


def _is_long(arguments: argparse.Namespace, model: Model) -> bool:
    audio = model.audio_model
    seconds = SoundFile(arguments.sound, audio.sample_rate).seconds
    return arguments.output is not None or seconds * audio.sample_rate > audio.max_samples


def _go_through(
    understand: Callable[..., LongSpeech], model: Model, arguments: argparse.Namespace, load_seconds: float
) -> None:
    """A long sound, part by part: to a file, or to the screen."""
    kept = find_unfinished(model, arguments)
    show = None if kept or arguments.json else _print_part
    heard = hear_parts(understand, arguments, kept, show, has_bar=kept is not None)
    if kept:
        write_output(arguments.output, transcript_format(arguments.output)(heard.parts))
        kept.forget()
    if arguments.json:
        facts = {"parts": [asdict(part) for part in heard.parts]}
        statistics = statistics_facts(model.spent, model, load_seconds)
        print(json.dumps(facts | {"statistics": statistics}, ensure_ascii=False))
    if not heard.parts:
        print("note: nobody speaks in the sound.", file=sys.stderr)
    note_parts(heard.parts, arguments)
    if arguments.statistics:
        print_statistics({"load": f"{load_seconds:.2f} s", "audio": heard.statistics})
        print_drafts(model)


def _print_part(part: SpokenPart) -> None:
    times = f"[{clock(part.start, '.')} - {clock(part.end, '.')}] "
    print(f"{times}{part.transcript}", flush=True)
    if part.translation:
        print(f"{' ' * len(times)}{part.translation}", flush=True)


def _show(
    answer: Answer,
    model: Model,
    arguments: argparse.Namespace,
    load_seconds: float,
    facts: Callable[[], dict[str, object]],
) -> None:
    if answer.note:
        print(f"note: {answer.note}", file=sys.stderr)
    if arguments.json:
        answer.finish()
        statistics = statistics_facts(answer.statistics, model, load_seconds)
        print(json.dumps(facts() | {"statistics": statistics}, ensure_ascii=False))
    else:
        print_answer(answer)
    note_cut(answer)
    if arguments.statistics:
        _print_statistics(answer.statistics, load_seconds)
        print_drafts(model)


def _print_statistics(statistics: Statistics, load_seconds: float) -> None:
    print_statistics(
        {
            "load": f"{load_seconds:.2f} s",
            "audio": f"{statistics.audio_seconds:.2f} s, encoded in {statistics.encode_seconds:.3f} s",
            **decoding_lines(statistics),
            "speed": f"{statistics.tokens_per_second:.1f} tokens/s, real-time factor {statistics.real_time_factor:.3f}",
        }
    )
