"""Long work that was interrupted: its parts are kept beside the output, and the same command goes on from there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from cabochon.errors import RequestError
from cabochon.json_dataclass import JsonMismatchError, from_json
from cabochon.long_speech import SpokenPart
from cabochon.package import replace_text


class Unfinished:
    """The parts of one piece of work, a line of JSON each, written as they come."""

    def __init__(self, output: Path, work: dict[str, object]) -> None:
        """Find what is left of the same work, or begin anew.

        Args:
            output: the file that the parts are for.
            work: what decides about the parts; those of other work are thrown away.
        """
        self.path = output.with_name(f"{output.name}.unfinished")
        self.parts: list[SpokenPart] = []
        heading = json.dumps(work, ensure_ascii=False, sort_keys=True)
        lines = list(_whole_lines(self.path))
        if lines and lines[0] == heading:
            for line in lines[1:]:
                part = _read_part(line)
                if part is None:
                    break
                self.parts.append(part)
        self._write_again(heading)

    def add(self, part: SpokenPart) -> None:
        """Keep another part."""
        self.parts.append(part)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(part), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def forget(self) -> None:
        """The output is written."""
        self.path.unlink(missing_ok=True)

    def _write_again(self, heading: str) -> None:
        """A line that was cut off must not be gone on with."""
        lines = (heading, *(json.dumps(asdict(part), ensure_ascii=False) for part in self.parts))
        try:
            replace_text(self.path, "".join(f"{line}\n" for line in lines))
        except OSError as error:
            raise RequestError(f"{self.path} cannot be written ({error.strerror}).") from None


def _whole_lines(path: Path) -> Iterator[str]:
    """Lines of a file that may be missing or be anything; the last only if it ends."""
    try:
        content = path.read_bytes()
    except OSError:
        return
    for line in content.split(b"\n")[:-1]:
        yield line.decode("utf-8", "replace")


def _read_part(line: str) -> SpokenPart | None:
    try:
        return from_json(SpokenPart, json.loads(line))
    except (ValueError, RecursionError, JsonMismatchError):
        return None
