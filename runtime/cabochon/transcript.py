"""What was understood of a long sound as a file: text, subtitles or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cabochon.errors import RequestError
from cabochon.json_dataclass import JsonMismatchError, from_json
from cabochon.long_speech import SpokenPart


def read_transcript(path: Path) -> list[SpokenPart]:
    """The parts of a file that `format_json` wrote; whatever else such an object holds is left aside.

    Raises:
        RequestError: there is no such file, or it holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        listed = value["parts"] if isinstance(value, dict) and "parts" in value else None
        return list(from_json(_Transcript, {"parts": listed}).parts)
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror}): give the .json file of a transcript.") from None
    except (ValueError, RecursionError) as error:
        what = str(error) if isinstance(error, JsonMismatchError) else "it is not JSON"
        raise RequestError(f"{path} is not a transcript ({what}): give a .json file that cabochon wrote.") from None


@dataclass(frozen=True, slots=True)
class _Transcript:
    parts: tuple[SpokenPart, ...]


def transcript_format(path: Path) -> Callable[[Sequence[SpokenPart]], str]:
    """How a file of this name is written.

    Raises:
        RequestError: its suffix is none of those that are known.
    """
    found = FORMATS.get(path.suffix.lower())
    if found is None:
        known = ", ".join(FORMATS)
        raise RequestError(f"{path} ends in {path.suffix or 'nothing'}, expected one of {known}: choose such a name.")
    return found


def format_text(parts: Sequence[SpokenPart]) -> str:
    """A line for each part: its translation where it has one."""
    return "".join(f"{line}\n" for part in parts if (line := _line(part)))


def format_srt(parts: Sequence[SpokenPart]) -> str:
    """SubRip: https://www.matroska.org/technical/subtitles.html#srt-subtitles"""
    cues = [(part, line) for part in parts if (line := _line(part))]
    return "".join(
        f"{number}\n{clock(part.start, ',')} --> {clock(part.end, ',')}\n{line}\n\n"
        for number, (part, line) in enumerate(cues, start=1)
    )


def format_vtt(parts: Sequence[SpokenPart]) -> str:
    """WebVTT: https://www.w3.org/TR/webvtt1/"""
    cues = [(part, line) for part in parts if (line := _line(part))]
    texts = (line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for _, line in cues)
    return "WEBVTT\n\n" + "".join(
        f"{clock(part.start, '.')} --> {clock(part.end, '.')}\n{text}\n\n"
        for (part, _), text in zip(cues, texts, strict=True)
    )


def format_json(parts: Sequence[SpokenPart], summary: str | None = None) -> str:
    """An object with all that is known of each part, and what was answered about the whole."""
    content: dict[str, object] = {} if summary is None else {"summary": summary}
    return json.dumps(content | {"parts": [asdict(part) for part in parts]}, ensure_ascii=False, indent=1) + "\n"


FORMATS = {".txt": format_text, ".srt": format_srt, ".vtt": format_vtt, ".json": format_json}
"""By the suffix of a file."""


def clock(seconds: float, point: str) -> str:
    """Hours, minutes, seconds and thousandths, as subtitles have them."""
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{point}{rest % 1000:03}"


def _line(part: SpokenPart) -> str:
    """On one line, because an empty one would end a subtitle."""
    return " ".join((part.translation or part.transcript).split())
