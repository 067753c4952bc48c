"""How many threads an engine has, and where they run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from cabochon.machine import processors_worth, read_processor_quota

SOUND = Path(__file__).parents[2] / "models" / "tiny" / "demo" / "german_unseen_voice.wav"
THREADS = 3
LOADED = f"""
import json, os, sys
from pathlib import Path
os.sched_setaffinity(0, range(os.cpu_count()))  # as a user's process, not as one of several tests
import cabochon
model = cabochon.load(sys.argv[1], threads={THREADS}, pin_threads=sys.argv[2] == "pinned")
said = "".join(model.transcribe(sys.argv[3], "German"))
places = [len(os.sched_getaffinity(int(task.name))) for task in Path("/proc/self/task").iterdir()]
print(json.dumps([said, places, len(os.sched_getaffinity(0))]))
"""


@dataclass(frozen=True, slots=True)
class Placed:
    """What a process tells of its threads once it has answered."""

    said: str
    places: list[int]
    """Processors that each thread may run on."""
    of_caller: int


def place(package: Path, placement: str) -> Placed:
    """Args: placement: `pinned` or `free`."""
    command = [sys.executable, "-c", LOADED, str(package), placement, str(SOUND)]
    return Placed(*json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux says where threads may run")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="there is one processor to run on")
def test_pinned_threads_stay_on_one_processor_and_the_caller_goes_where_it_likes(tiny_package: Path) -> None:
    free, pinned = place(tiny_package, "free"), place(tiny_package, "pinned")
    assert free.said == pinned.said
    assert set(free.places) == {os.cpu_count()}
    assert pinned.of_caller == os.cpu_count()
    # Decoder and audio encoder have threads of their own; the caller is one of each.
    assert pinned.places.count(1) >= THREADS - 1


@pytest.mark.parametrize(
    ("usable", "quota", "threads"), [(4, None, 4), (4, 2.0, 2), (4, 1.5, 2), (4, 0.2, 1), (2, 3.5, 2)]
)
def test_there_are_no_more_threads_than_a_service_has_processors_worth_of_time(
    usable: int, quota: float | None, threads: int
) -> None:
    assert processors_worth(usable, quota) == threads


def test_the_tightest_quota_of_a_control_group_and_those_around_it_counts(tmp_path: Path) -> None:
    service = tmp_path / "system.slice" / "cabochon.service"
    service.mkdir(parents=True)
    (service / "cpu.max").write_text("300000 100000\n")
    text = "0::/system.slice/cabochon.service\n"
    assert read_processor_quota(text, tmp_path) == 3.0
    (service.parent / "cpu.max").write_text("150000 100000\n")
    assert read_processor_quota(text, tmp_path) == 1.5
    for unlimited in ("max 100000\n", "", "0 0\n", "-1 100000\n", "nonsense"):
        (service / "cpu.max").write_text(unlimited)
        (service.parent / "cpu.max").write_text(unlimited)
        assert read_processor_quota(text, tmp_path) is None


def test_a_quota_of_the_first_version_of_control_groups_is_understood(tmp_path: Path) -> None:
    group = tmp_path / "cpu,cpuacct" / "docker"
    group.mkdir(parents=True)
    (tmp_path / "cpu").symlink_to("cpu,cpuacct")
    (group / "cpu.cfs_quota_us").write_text("200000\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    text = "4:cpu,cpuacct:/docker\n0::/\n"
    assert read_processor_quota(text, tmp_path) == 2.0
    (group / "cpu.cfs_quota_us").write_text("-1\n")
    assert read_processor_quota(text, tmp_path) is None
