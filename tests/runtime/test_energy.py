from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from cabochon.energy import WattCommand, find_meter, find_package_counters, parse_watts
from cabochon.errors import RequestError


def write_zone(root: Path, name: str, label: str, microjoules: object, span: int = 1000_000_000) -> Path:
    zone = root / name
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "name").write_text(label + "\n")
    (zone / "energy_uj").write_text(f"{microjoules}\n")
    (zone / "max_energy_range_uj").write_text(f"{span}\n")
    return zone


def test_energy_is_that_of_all_processor_packages_and_counts_no_part_twice(tmp_path: Path) -> None:
    zones = [write_zone(tmp_path, f"intel-rapl:{index}", f"package-{index}", 100) for index in range(2)]
    core = write_zone(tmp_path, "intel-rapl:0:0", "core", 50)
    system = write_zone(tmp_path, "intel-rapl:2", "psys", 50)
    counters = find_package_counters(tmp_path)
    assert counters is not None
    assert counters.joules() == 0
    for zone in (*zones, core, system):
        (zone / "energy_uj").write_text("3000100\n")
    assert counters.joules() == pytest.approx(6.0, abs=1e-3)


def test_a_counter_that_begins_anew_loses_nothing(tmp_path: Path) -> None:
    zone = write_zone(tmp_path, "intel-rapl:0", "package-0", 9_000_000, span=10_000_000)
    counters = find_package_counters(tmp_path)
    assert counters is not None
    (zone / "energy_uj").write_text("2000000\n")
    assert counters.joules() == pytest.approx(3.0)


@pytest.mark.parametrize("content", ["", "many", "-1", "1.5", "٣"])
def test_a_counter_that_is_no_number_is_none(tmp_path: Path, content: str) -> None:
    write_zone(tmp_path, "intel-rapl:0", "package-0", content)
    assert find_package_counters(tmp_path) is None
    assert find_package_counters(tmp_path / "missing") is None


def test_watts_of_a_command_become_joules_over_time() -> None:
    meter = WattCommand([sys.executable, "-c", "print('power: 20 W')"], pause=0.01)
    started, before = time.monotonic(), meter.joules()
    time.sleep(0.2)
    joules, seconds = meter.joules() - before, time.monotonic() - started
    meter.close()
    assert joules == pytest.approx(20 * seconds, rel=0.05)


@pytest.mark.parametrize("program", ["print('none')", "print(5); raise SystemExit(3)", "print(-4)", "pass"])
def test_a_command_that_gives_no_watts_is_refused(program: str) -> None:
    with refused(RequestError, "watts"):
        WattCommand([sys.executable, "-c", program])


def test_a_command_that_does_not_exist_is_refused() -> None:
    with refused(RequestError, "no-such-meter"):
        WattCommand(["no-such-meter"])


@given(st.text())
def test_watts_are_a_number_from_zero_or_nothing(text: str) -> None:
    watts = parse_watts(text)
    assert watts is None or (0 <= watts < math.inf)


@given(st.floats(0, 9e5))
def test_any_number_of_watts_is_read_as_it_is_printed(watts: float) -> None:
    assert parse_watts(f"{watts}\n") == watts


def test_a_boards_own_rails_are_integrated_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rails = "VDD_CORE_A current(7)=2.0A\nVDD_CORE_V volt(15)=1.5V\n"
    monkeypatch.setattr("cabochon.energy.ask_firmware", lambda *_: rails)
    monkeypatch.setattr("cabochon.energy.find_package_counters", lambda: None)
    meter = find_meter()
    assert meter is not None
    before = meter.joules()
    time.sleep(0.2)
    spent = meter.joules() - before
    meter.close()
    assert 0.5 < spent < 30  # 3 W for 0.2 s, on a machine that may be busy
    monkeypatch.setattr("cabochon.energy.ask_firmware", lambda *_: "")
    assert find_meter() is None
