from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from cabochon.errors import RequestError
from cabochon.long_speech import SpokenPart
from cabochon.transcript import FORMATS, clock, format_json, read_transcript, transcript_format
from cabochon.unfinished import Unfinished

TEXTS = st.text(max_size=30) | st.sampled_from(["a --> b", "1\n\n2", "<b>&amp;", "\r\n", "  ", "WEBVTT", "\x00"])


@st.composite
def spoken_parts(draw: st.DrawFn) -> list[SpokenPart]:
    times = sorted(draw(st.lists(st.floats(0, 4e5, allow_nan=False), min_size=0, max_size=12)))
    pairs = zip(times[::2], times[1::2], strict=False)
    return [SpokenPart(start, end, draw(TEXTS), draw(TEXTS), draw(st.booleans())) for start, end in pairs]


PARTS = [SpokenPart(0.5, 2.25, "One.", "Eins."), SpokenPart(3661.0, 3662.9996, "Two <3 & more.")]


def test_text_has_a_line_for_each_part_the_translation_where_there_is_one() -> None:
    assert FORMATS[".txt"](PARTS) == "Eins.\nTwo <3 & more.\n"


def test_subrip_counts_its_cues() -> None:
    assert FORMATS[".srt"](PARTS) == (
        "1\n00:00:00,500 --> 00:00:02,250\nEins.\n\n2\n01:01:01,000 --> 01:01:03,000\nTwo <3 & more.\n\n"
    )


def test_webvtt_escapes_what_would_be_markup() -> None:
    assert FORMATS[".vtt"](PARTS) == (
        "WEBVTT\n\n00:00:00.500 --> 00:00:02.250\nEins.\n\n01:01:01.000 --> 01:01:03.000\nTwo &lt;3 &amp; more.\n\n"
    )


@given(spoken_parts())
def test_whatever_was_said_a_subtitle_stays_one_cue(parts: list[SpokenPart]) -> None:
    shown = [part for part in parts if (part.translation or part.transcript).split()]
    for suffix in (".srt", ".vtt"):
        text = FORMATS[suffix](parts)
        times = [line for line in text.split("\n") if re.fullmatch(r"[\d:.,]+ --> [\d:.,]+", line)]
        assert len(times) == len(shown)
        blocks = text.removeprefix("WEBVTT\n\n").split("\n\n")[:-1]
        assert len(blocks) == len(shown)


@given(spoken_parts())
def test_json_keeps_everything(parts: list[SpokenPart]) -> None:
    assert [SpokenPart(**part) for part in json.loads(FORMATS[".json"](parts))["parts"]] == parts


@given(spoken_parts(), st.none() | TEXTS)
def test_a_transcript_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, parts: list[SpokenPart], summary: str | None
) -> None:
    path = tmp_path_factory.mktemp("transcript") / "a.json"
    path.write_text(format_json(parts, summary), encoding="utf-8")
    assert read_transcript(path) == parts
    assert ("summary" in json.loads(path.read_text(encoding="utf-8"))) == (summary is not None)


PART = '{"start": 0, "end": 1, "transcript": "a", "translation": "", "complete": true}'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "it is not JSON"),
        ("[" * 200_000, "it is not JSON"),
        ("\xff", "it is not JSON"),
        ("[]", "parts is null"),
        ('{"text": "hello"}', "parts is null"),
        ('{"parts": {}}', "parts is an object"),
        ('{"parts": [1]}', "parts[0] is an integer"),
        ('{"parts": [' + PART.replace("start", "begin") + "]}", "begin"),
        ('{"parts": [' + PART.replace("1", "-1") + "]}", "from 0.0 s to -1.0 s"),
        ('{"parts": [' + PART.replace("1", "1e999") + "]}", "finite"),
    ],
)
def test_what_is_no_transcript_is_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content, encoding="latin-1")
    with refused(RequestError, "a.json", words):
        read_transcript(path)


def test_a_transcript_that_is_missing_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.json"):
        with refused(RequestError, "cannot be read"):
            read_transcript(path)


@given(st.floats(0, 359_999))
def test_a_clock_counts_to_thousandths(seconds: float) -> None:
    hours, minutes, rest = clock(seconds, ".").split(":")
    assert (len(hours), len(minutes), len(rest)) == (2, 2, 6)
    assert int(minutes) < 60 > float(rest)
    assert abs(3600 * int(hours) + 60 * int(minutes) + float(rest) - seconds) < 0.00051


@pytest.mark.parametrize("name", ["a.doc", "a", ".srt", "a.srt.gz"])
def test_a_name_that_says_no_format_is_refused(name: str) -> None:
    with refused(RequestError, name, ".vtt"):
        transcript_format(Path(name))


WORK: dict[str, object] = {"sound": "abc", "languages": ["German", None]}


def test_interrupted_work_is_gone_on_with(tmp_path: Path) -> None:
    output = tmp_path / "interview.srt"
    first = Unfinished(output, WORK)
    for part in PARTS:
        first.add(part)
    again = Unfinished(output, dict(reversed(WORK.items())))
    assert again.parts == PARTS
    again.add(PARTS[0])
    assert Unfinished(output, WORK).parts == [*PARTS, PARTS[0]]
    again.forget()
    assert list(tmp_path.iterdir()) == []


def test_notes_are_kept_beside_the_parts(tmp_path: Path) -> None:
    output = tmp_path / "interview.json"
    first = Unfinished(output, WORK)
    first.add(PARTS[0])
    first.notes["asked"] = "Écrit.\nTwice."
    first.add(PARTS[1])
    again = Unfinished(output, WORK)
    assert (again.parts, dict(again.notes)) == (PARTS, {"asked": "Écrit.\nTwice."})
    again.notes["more"] = ""
    assert dict(Unfinished(output, WORK).notes) == {"asked": "Écrit.\nTwice.", "more": ""}
    assert dict(Unfinished(output, {}).notes) == {}


def test_other_work_begins_anew(tmp_path: Path) -> None:
    output = tmp_path / "interview.srt"
    Unfinished(output, WORK).add(PARTS[0])
    assert Unfinished(output, WORK | {"sound": "other"}).parts == []
    assert Unfinished(output, WORK).parts == []


@given(content=st.binary(max_size=200), cut=st.integers(0, 400))
def test_what_was_cut_off_or_altered_costs_only_the_parts_behind_it(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, cut: int
) -> None:
    output = tmp_path_factory.mktemp("unfinished") / "a.txt"
    first = Unfinished(output, WORK)
    for part in PARTS:
        first.add(part)
    whole = first.path.read_bytes()
    first.path.write_bytes(whole[: min(cut, len(whole))] + content)
    found = Unfinished(output, WORK)
    if cut < len(whole):
        assert found.parts[:1] in ([], PARTS[:1])
    else:
        assert found.parts[:2] == PARTS
    # What is read once is read again.
    assert Unfinished(output, WORK).parts == found.parts


def test_a_folder_that_cannot_be_written_is_told_in_one_sentence(tmp_path: Path) -> None:
    with refused(RequestError, "cannot be written"):
        Unfinished(tmp_path / "missing" / "a.txt", WORK)


def test_a_time_that_no_sound_has_is_refused_before_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "transcript.json"
    path.write_text('{"parts": [{"start": 0, "end": 1e308, "transcript": "a"}]}')
    with refused(RequestError, "not a transcript"):
        read_transcript(path)
