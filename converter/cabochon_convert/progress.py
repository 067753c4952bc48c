"""Progress of long work, for whoever shows it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives what the conversion is doing."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """A stage begins that has `total` units of work, e.g. bytes."""

    def advance(self, amount: int) -> None:
        """Some units of the stage are done."""


class Silence:
    """Shows nothing."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """Nothing."""

    def advance(self, amount: int) -> None:
        """Nothing."""
