from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cabochon.finding import Finding
from cabochon.raspberry_pi import Board, find_board, judge_board, parse_power, parse_swaps, parse_throttled

GOOD = Board(
    "Raspberry Pi 5 Model B Rev 1.0", 0, 52.3, "ondemand", ("/dev/zram0",), ("cpuset", "cpu", "io", "memory", "pids")
)


def by_name(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_nothing_is_wrong_with_a_good_board() -> None:
    found = by_name(judge_board(GOOD))
    assert {finding.status for finding in found.values()} == {"ok"}
    assert found["board"].found == GOOD.model


@pytest.mark.parametrize(
    ("board", "name", "status", "advice"),
    [
        (replace(GOOD, throttled=0x50005), "throttling", "warning", "power supply"),
        (replace(GOOD, throttled=0x80000), "throttling", "warning", "heat sink"),
        (replace(GOOD, temperature=84.0), "temperature", "warning", "heat sink"),
        (replace(GOOD, governor="powersave"), "governor", "warning", "ondemand"),
        (replace(GOOD, swaps=("/var/swap",)), "swap device", "warning", "zram"),
        (replace(GOOD, controllers=("cpu", "pids")), "memory control group", "warning", "cgroup_enable=memory"),
        (replace(GOOD, is_64_bit=False), "system", "problem", "64-bit"),
    ],
)
def test_what_is_wrong_comes_with_what_to_do(board: Board, name: str, status: str, advice: str) -> None:
    finding = by_name(judge_board(board))[name]
    assert finding.status == status
    assert advice in finding.advice


def test_throttling_tells_now_from_before() -> None:
    finding = by_name(judge_board(replace(GOOD, throttled=0x50001)))["throttling"]
    assert finding.found == "now: under-voltage; since the start: under-voltage, throttled"


def test_a_board_is_read_from_the_systems_files(tmp_path: Path) -> None:
    files = {
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
        "proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n/var/swap file 524284 0 -2\n",
        "sys/class/thermal/thermal_zone0/temp": "61343\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
        "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io pids\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    board = find_board(tmp_path)
    assert board is not None
    assert board.model == "Raspberry Pi 4 Model B Rev 1.4"
    assert (board.temperature, board.governor, board.swaps) == (61.343, "powersave", ("/var/swap",))
    assert "memory" not in board.controllers


def test_another_machine_is_no_raspberry_pi(tmp_path: Path) -> None:
    assert find_board(tmp_path) is None
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text("Radxa ROCK 5B\0")
    assert find_board(tmp_path) is None


def test_rails_with_volts_and_amperes_add_up_to_watts() -> None:
    text = """\
    3V7_WL_SW_A current(0)=0.09000000A
       VDD_CORE_A current(7)=2.50000000A
    3V7_WL_SW_V volt(8)=3.70000000V
       VDD_CORE_V volt(15)=0.80000000V
       EXT5V_V volt(24)=5.10000000V
    """
    watts = parse_power(text)
    assert watts is not None
    assert abs(watts - (0.09 * 3.7 + 2.5 * 0.8)) < 1e-9


@given(st.text())
def test_whatever_the_firmware_prints_nothing_breaks(text: str) -> None:
    for parse in (parse_throttled, parse_power):
        found = parse(text)
        assert found is None or found >= 0
    parse_swaps(text)


@given(st.integers(0, 0xFFFFFFFF))
def test_every_state_is_told_with_advice(bits: int) -> None:
    assert parse_throttled(f"throttled={bits:#x}\n") == bits
    for finding in judge_board(replace(GOOD, throttled=bits)):
        assert finding.status == "ok" or finding.advice
