"""Progress, as a person at a terminal sees it."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from cabochon.errors import missing_dependency


class ProgressBars:
    """Progress as bars with rate and remaining time, on standard error and only for a person."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(finished=error is None)

    def start(self, stage: str, total: int, unit: str) -> None:
        """See `Progress.start`."""
        try:
            from tqdm import tqdm
        except ImportError:
            raise missing_dependency("tqdm", "convert") from None
        self._close(finished=True)
        # disable=None: no bar where standard error is not a terminal.
        self._bar = tqdm(total=total, unit=unit, unit_scale=True, desc=stage.ljust(22), disable=None)

    def advance(self, amount: int) -> None:
        """See `Progress.advance`."""
        if self._bar is not None:
            self._bar.update(amount)

    def _close(self, *, finished: bool) -> None:
        if self._bar is not None:
            # Tensors that have no use are not read, so a finished stage may stand short of its total.
            if finished and not self._bar.disable:
                self._bar.update(self._bar.total - self._bar.n)
            self._bar.close()
            self._bar = None
