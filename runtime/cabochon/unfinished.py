"""Long work that was interrupted: what is done is kept beside the output, and the same command goes on from there."""

from __future__ import annotations

import json
import os
from collections import UserDict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from cabochon.errors import RequestError
from cabochon.json_dataclass import JsonMismatchError, from_json
from cabochon.long_speech import SpokenPart
from cabochon.whole_file import replace_text


@dataclass(frozen=True, slots=True)
class _Note:
    question: str
    note: str


class Unfinished:
    """The parts of one piece of work and the notes on them, a line of JSON each, written as they come."""

    def __init__(self, output: Path, work: dict[str, object]) -> None:
        """Find what is left of the same work, or begin anew.

        Args:
            output: the file that the parts are for.
            work: what decides about the parts; those of other work are thrown away.
        """
        self.path = output.with_name(f"{output.name}.unfinished")
        self.parts: list[SpokenPart] = []
        known: dict[str, str] = {}
        heading = json.dumps(work, ensure_ascii=False, sort_keys=True)
        lines = list(_whole_lines(self.path))
        if lines and lines[0] == heading:
            for line in lines[1:]:
                match _read_record(line):
                    case SpokenPart() as part:
                        self.parts.append(part)
                    case _Note() as note:
                        known[note.question] = note.note
                    case None:
                        break
        self.notes = _WrittenNotes(known, self._append)
        """See `summary.summarize`; each is written when it is added."""
        self._write_again(heading)

    def add(self, part: SpokenPart) -> None:
        """Keep another part."""
        self.parts.append(part)
        self._append(part)

    def forget(self) -> None:
        """The output is written."""
        self.path.unlink(missing_ok=True)

    def _append(self, record: SpokenPart | _Note) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())

    def _write_again(self, heading: str) -> None:
        """A line that was cut off must not be gone on with."""
        notes = [_Note(question, note) for question, note in self.notes.items()]
        lines = (f"{heading}\n", *map(_line, self.parts), *map(_line, notes))
        try:
            replace_text(self.path, "".join(lines))
        except OSError as error:
            raise RequestError(f"{self.path} cannot be written ({error.strerror}).") from None


class _WrittenNotes(UserDict[str, str]):
    """Notes by what was asked."""

    def __init__(self, known: dict[str, str], write: Callable[[_Note], None]) -> None:
        self._write: Callable[[_Note], None] | None = None
        super().__init__(known)
        self._write = write

    def __setitem__(self, question: str, note: str) -> None:
        super().__setitem__(question, note)
        if self._write:
            self._write(_Note(question, note))


def _line(record: SpokenPart | _Note) -> str:
    return json.dumps(asdict(record), ensure_ascii=False) + "\n"


def _whole_lines(path: Path) -> Iterator[str]:
    """Lines of a file that may be missing or be anything; the last only if it ends."""
    try:
        content = path.read_bytes()
    except OSError:
        return
    for line in content.split(b"\n")[:-1]:
        yield line.decode("utf-8", "replace")


def _read_record(line: str) -> SpokenPart | _Note | None:
    try:
        value = json.loads(line)
        return from_json(_Note, value) if isinstance(value, dict) and "note" in value else from_json(SpokenPart, value)
    except (ValueError, RecursionError, JsonMismatchError):
        return None
