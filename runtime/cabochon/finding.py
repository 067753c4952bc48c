"""What `cabochon doctor` says about one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    """Of the thing: stays the same from version to version."""
    status: Status
    """`warning`: something works less well or not at all, `problem`: the package, or any, cannot be run."""
    found: str
    advice: str = ""
    """What to do; empty where nothing is to be done."""

    def __post_init__(self) -> None:
        if self.status != "ok" and not self.advice:
            raise ValueError(f"{self.name} is a {self.status} without advice")
