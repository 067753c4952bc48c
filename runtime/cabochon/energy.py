"""Energy that was spent meanwhile: the processor's own counters (RAPL), or a command of the user's that says watts.

Counters are those of https://docs.kernel.org/power/powercap/powercap.html; reading them mostly needs root.
"""

from __future__ import annotations

import math
import re
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cabochon.errors import RequestError
from cabochon.machine import read_text
from cabochon.raspberry_pi import ask_firmware, parse_power

POWERCAP = Path("/sys/class/powercap")
COMMAND_SECONDS = 5.0
"""That a command may take to say how many watts there are."""
SAMPLE_SECONDS = 0.5
"""From one question for watts to the next."""


class EnergyMeter(Protocol):
    """Joules since any moment in the past."""

    @property
    def source(self) -> str:
        """What measures, and what is measured."""

    def joules(self) -> float:
        """Spent so far: only differences mean anything."""

    def close(self) -> None:
        """Measure no longer."""


class PackageCounters:
    """RAPL's counters of whole processor packages: what they and their memory controllers take, and nothing else."""

    source = "RAPL, processor packages only"

    def __init__(self, zones: Sequence[Path]) -> None:
        self._zones = zones
        self._last = [_microjoules(zone) or 0 for zone in zones]
        self._spans = [_number(zone / "max_energy_range_uj") or 0 for zone in zones]
        self._total = 0

    def joules(self) -> float:
        """See `EnergyMeter.joules`: counters begin anew at their highest value, which they reach within minutes."""
        for index, zone in enumerate(self._zones):
            now = _microjoules(zone)
            if now is not None:
                spent = now - self._last[index]
                self._total += spent if spent >= 0 else max(0, spent + self._spans[index])
                self._last[index] = now
        return self._total / 1e6

    def close(self) -> None:
        """Nothing to end."""


def find_package_counters(root: Path = POWERCAP) -> PackageCounters | None:
    """RAPL's counters; None where there are none, or none that this user may read."""
    # intel-rapl:0 is a package, which intel-rapl:0:0 is a part of. AMD's have the same name.
    try:
        zones = sorted(path for path in root.iterdir() if re.fullmatch(r"intel-rapl:[0-9]+", path.name))
    except OSError:
        return None
    packages = [zone for zone in zones if read_text(zone / "name").startswith("package")]
    readable = [zone for zone in packages if _microjoules(zone) is not None]
    return PackageCounters(readable) if readable else None


def find_meter() -> EnergyMeter | None:
    """What this machine has of its own to measure energy; None where there is nothing, or it may not be read."""
    counters = find_package_counters()
    if counters is not None:
        return counters
    return BoardMeter() if parse_power(ask_firmware("pmic_read_adc")) is not None else None


class WattCommand:
    """A command that prints watts, asked again and again while something is measured."""

    def __init__(self, command: Sequence[str], pause: float = SAMPLE_SECONDS) -> None:
        """RequestError where it cannot be run or prints no number."""
        self._command, self._pause = command, pause
        self.source = f"watts of the command {command[0]}"
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._total, self._at = 0.0, time.monotonic()
        self._watts = self._ask()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def joules(self) -> float:
        """See `EnergyMeter.joules`."""
        with self._lock:
            self._integrate()
            return self._total

    def close(self) -> None:
        """See `EnergyMeter.close`."""
        self._stopping.set()
        self._thread.join()

    def _integrate(self) -> None:
        now = time.monotonic()
        self._total += self._watts * (now - self._at)
        self._at = now

    def _sample(self) -> None:
        while not self._stopping.wait(self._pause):
            try:
                watts = self._ask()
            except RequestError:  # it worked before, so that the last watts are the best guess
                continue
            with self._lock:
                self._integrate()
                self._watts = watts

    def _ask(self) -> float:
        try:
            outcome = subprocess.run(
                self._command, capture_output=True, timeout=COMMAND_SECONDS, check=False, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RequestError(f"the command for watts, {self._command[0]}, cannot be run ({error}).") from None
        text = outcome.stdout.decode("utf-8", "replace")
        watts = parse_watts(text)
        if outcome.returncode or watts is None:
            raise RequestError(
                f"the command for watts, {self._command[0]}, ended with status {outcome.returncode} and printed "
                f"{text[:40]!r}: expected status 0 and a number of watts such as 5.3."
            )
        return watts


class BoardMeter(WattCommand):
    """The power management of a Raspberry Pi 5: the rails of processor and memory, not what hangs at its plugs."""

    def __init__(self, pause: float = SAMPLE_SECONDS) -> None:
        self._pause = pause
        self.source = "the board's power management, its own rails only"
        self._begin()

    def _ask(self) -> float:
        watts = parse_power(ask_firmware("pmic_read_adc"))
        if watts is None:
            raise RequestError("vcgencmd pmic_read_adc says nothing any more: measure with a command of your own.")
        return watts


def parse_watts(text: str) -> float | None:
    """The first number of a text; None where there is none that watts could be."""
    match = re.search(r"[-+]?[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?", text)
    watts = float(match[0]) if match else math.nan
    return watts if 0 <= watts < 1e6 else None


def _microjoules(zone: Path) -> int | None:
    return _number(zone / "energy_uj")


def _number(path: Path) -> int | None:
    text = read_text(path, 64).strip()
    return int(text) if text.isascii() and text.isdecimal() else None
