"""What is peculiar to a Raspberry Pi: which one, throttling, heat, the governor, where it swaps to, control groups.

Bits of `vcgencmd get_throttled`:
https://www.raspberrypi.com/documentation/computers/os.html#get_throttled
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cabochon.finding import Finding
from cabochon.machine import read_text

COMMAND_SECONDS = 5.0
HOT = 80.0
"""Degrees Celsius at which the firmware begins to slow the processor down."""
NOW = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
SINCE_START = 16
"""The same bits again: it happened since the machine was started."""


@dataclass(frozen=True, slots=True)
class Board:
    """What a Raspberry Pi says about itself; empty or None where it does not."""

    model: str
    throttled: int | None = None
    """Bits of `vcgencmd get_throttled`."""
    temperature: float | None = None
    """Degrees Celsius."""
    governor: str = ""
    swaps: tuple[str, ...] = ()
    """Devices and files."""
    controllers: tuple[str, ...] = ()
    """Of control groups."""
    is_64_bit: bool = True
    """Of the programs, whatever the kernel is."""


def check_raspberry_pi() -> Iterator[Finding]:
    """Nothing on another machine."""
    board = find_board()
    if board is not None:
        yield from judge_board(board)


def find_board(root: Path = Path("/")) -> Board | None:
    """None where the machine is no Raspberry Pi. Args: root: where proc and sys lie."""
    model = read_text(root / "proc/device-tree/model", 200).replace("\0", "").strip()
    if not model.startswith("Raspberry Pi"):
        return None
    heat = read_text(root / "sys/class/thermal/thermal_zone0/temp", 64).strip()
    return Board(
        model="".join(char if char.isprintable() else " " for char in model),
        throttled=parse_throttled(ask_firmware("get_throttled")),
        temperature=int(heat) / 1000 if re.fullmatch("[0-9]{1,7}", heat) else None,
        governor=read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", 64).strip(),
        swaps=parse_swaps(read_text(root / "proc/swaps")),
        controllers=tuple(read_text(root / "sys/fs/cgroup/cgroup.controllers", 1000).split()),
        is_64_bit=sys.maxsize > 1 << 32,
    )


def ask_firmware(*words: str) -> str:
    """What `vcgencmd` prints; empty where there is none, or it may not be asked."""
    if shutil.which("vcgencmd") is None:
        return ""
    try:
        outcome = subprocess.run(
            ["vcgencmd", *words], capture_output=True, timeout=COMMAND_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return outcome.stdout.decode("utf-8", "replace") if outcome.returncode == 0 else ""


def parse_throttled(text: str) -> int | None:
    """`throttled=0x50000` as a number."""
    match = re.fullmatch(r"throttled=0x([0-9a-fA-F]{1,8})", text.strip())
    return int(match[1], 16) if match else None


def parse_swaps(text: str) -> tuple[str, ...]:
    """Names in /proc/swaps."""
    return tuple(line.split()[0] for line in text.splitlines()[1:] if line.strip())


def parse_power(text: str) -> float | None:
    """Watts in what `vcgencmd pmic_read_adc` prints: volts times amperes of every rail that has both.

    What the power management's own losses and USB devices take is not part of it.
    """
    found: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"\s*(\w+)_([AV])\s+(?:current|volt)\([0-9]+\)=([0-9]+(?:\.[0-9]+)?)[AV]\s*", line)
        if match:
            found.setdefault(match[1], {})[match[2]] = float(match[3])
    watts = [rail["A"] * rail["V"] for rail in found.values() if len(rail) == 2]
    return sum(watts) if watts else None


def judge_board(board: Board) -> Iterator[Finding]:
    """Findings about a Raspberry Pi."""
    yield Finding("board", "ok", board.model)
    if not board.is_64_bit:
        yield Finding(
            "system", "problem", "32 bits", "install the 64-bit Raspberry Pi OS: engines have no wheels for 32"
        )
    yield from _judge_throttling(board)
    if board.temperature is not None:
        hot = board.temperature >= HOT
        advice = "cool it: a heat sink or the active cooler" if hot else ""
        yield Finding("temperature", "warning" if hot else "ok", f"{board.temperature:.0f} °C", advice)
    if board.governor == "powersave":
        yield Finding(
            "governor", "warning", "powersave: the slowest clock, always",
            "echo ondemand | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
        )  # fmt: skip
    elif board.governor:
        yield Finding("governor", "ok", board.governor)
    cards = [name for name in board.swaps if "zram" not in name]
    if cards:
        yield Finding(
            "swap device", "warning", f"{', '.join(cards)} may lie on the SD card",
            "swap to compressed memory instead, which wears nothing out: apt install systemd-zram-generator",
        )  # fmt: skip
    else:
        yield Finding("swap device", "ok", ", ".join(board.swaps) or "none")
    if "memory" in board.controllers:
        yield Finding("memory control group", "ok", "there is one")
    else:
        yield Finding(
            "memory control group", "warning", "off: MemoryMax= of a service does nothing",
            "if you want such limits, add cgroup_enable=memory to /boot/firmware/cmdline.txt and start again",
        )  # fmt: skip


def _judge_throttling(board: Board) -> Iterator[Finding]:
    if board.throttled is None:
        yield Finding("throttling", "ok", "unknown: vcgencmd does not say")
        return
    now = [name for bit, name in NOW.items() if board.throttled >> bit & 1]
    before = [name for bit, name in NOW.items() if board.throttled >> (bit + SINCE_START) & 1]
    told = [f"now: {', '.join(now)}"] * bool(now) + [f"since the start: {', '.join(before)}"] * bool(before)
    if not told:
        yield Finding("throttling", "ok", "none since the start")
        return
    weak = any(name == NOW[0] for name in (*now, *before))
    advice = (
        "use a stronger power supply (5.1 V, 5 A for a Pi 5)" if weak else "cool it: a heat sink or the active cooler"
    )
    yield Finding("throttling", "warning", "; ".join(told), advice)
