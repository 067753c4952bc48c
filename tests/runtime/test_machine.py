from __future__ import annotations

import re
from dataclasses import astuple
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cabochon.machine import (
    Memory,
    MemoryLimit,
    parse_memory,
    parse_processor,
    parse_resident_memory,
    read_memory_limit,
    resident_memory,
    usable_memory,
)

XEON = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R)  Xeon(R) Gold
flags\t\t: fpu sse2 avx2 avx512f avx512_vnni

processor\t: 1
model name\t: another one
flags\t\t: fpu
"""
RASPBERRY_PI_5 = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b

Revision\t: d04170
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
# Lines as the files have them, with anything in the places of names and numbers.
VALUES = st.one_of(
    st.text(max_size=30),
    st.integers(-(10**40), 10**40).map(lambda number: f"{number} kB"),
    st.integers(-(10**40), 10**40).map(str),
)
NAMES = st.sampled_from(
    [
        "MemTotal",
        "MemAvailable",
        "SwapTotal",
        "SwapFree",
        "VmRSS",
        "VmHWM",
        "RssAnon",
        "flags",
        "Features",
        "model name",
    ]
) | st.text(max_size=12)
LINES = st.lists(st.tuples(NAMES, VALUES).map(lambda pair: f"{pair[0]}:\t{pair[1]}\n"), max_size=12).map("".join)
GROUP_PATHS = st.text("/.ab\0\\ ", max_size=20) | st.text(max_size=20)
GROUP_LINES = st.tuples(
    st.sampled_from(["0", "4", "x", ""]), st.sampled_from(["", "memory", "cpu,memory", "name=systemd"]), GROUP_PATHS
).map(":".join)


def write_group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_dot_", ".")).write_text(f"{content}\n")


def test_of_a_processor_its_name_and_what_kernels_look_for_are_told() -> None:
    processor = parse_processor(XEON, "x86_64", 2, 1)
    assert processor.model == "Intel(R) Xeon(R) Gold"
    assert processor.features == ("avx2", "avx512f", "avx512_vnni")
    assert (processor.cores, processor.usable_cores) == (2, 1)


def test_a_raspberry_pi_5_has_half_precision_and_dot_products_but_no_i8mm() -> None:
    processor = parse_processor(RASPBERRY_PI_5, "aarch64", 4, 4)
    assert processor.model == "Raspberry Pi 5 Model B Rev 1.0"
    assert processor.features == ("asimd", "asimdhp", "asimddp")
    assert set(processor.wanted_features) - set(processor.features) == {"i8mm"}


def test_memory_is_told_in_bytes() -> None:
    text = "MemTotal:        8245756 kB\nMemFree: 1 kB\nMemAvailable:    7000000 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n"
    assert parse_memory(text) == Memory(8245756 * 1024, 7000000 * 1024, 0, 0)
    assert parse_memory("MemTotal: 12\nMemAvailable: -3 kB\nSwapTotal: 9 MB\n") == Memory()


def test_this_process_has_memory_and_had_no_less_at_its_peak() -> None:
    memory = resident_memory()
    assert memory.now is not None
    assert memory.peak is not None
    assert 10_000_000 < memory.now <= memory.peak


@given(text=LINES | st.text())
def test_whatever_the_system_says_is_read_without_an_error_and_nothing_is_negative(text: str) -> None:
    for value in (*astuple(parse_memory(text)), *astuple(parse_resident_memory(text))):
        assert value is None or 0 <= value < 1 << 62
    for architecture in ("x86_64", "aarch64", "riscv64", ""):
        processor = parse_processor(text, architecture, 4, 4)
        assert set(processor.features) <= set(processor.wanted_features)
        assert processor.model.isprintable()
        assert len(processor.model) <= 100


def test_the_limit_of_a_container_is_the_tightest_of_all_groups_around_it(tmp_path: Path) -> None:
    write_group(tmp_path / "system.slice", memory_dot_max=4_000_000, memory_dot_current=1_000_000)
    write_group(tmp_path / "system.slice" / "cabochon.service", memory_dot_max="max", memory_dot_current=5)
    text = "0::/system.slice/cabochon.service\n"
    assert read_memory_limit(text, tmp_path) == MemoryLimit(4_000_000, 1_000_000)
    write_group(tmp_path / "system.slice" / "cabochon.service", memory_dot_max=3_000_000)
    assert read_memory_limit(text, tmp_path) == MemoryLimit(3_000_000, 5)


def test_the_first_version_of_control_groups_is_understood_and_its_no_limit_is_none(tmp_path: Path) -> None:
    group = tmp_path / "memory" / "docker" / "abc"
    write_group(group, memory_dot_limit_in_bytes=9223372036854771712, memory_dot_usage_in_bytes=7)
    text = "11:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n"
    assert read_memory_limit(text, tmp_path) is None
    write_group(group, memory_dot_limit_in_bytes=2_000_000)
    assert read_memory_limit(text, tmp_path) == MemoryLimit(2_000_000, 7)


def test_a_control_group_leads_nowhere_outside_its_folder(tmp_path: Path) -> None:
    write_group(tmp_path, memory_dot_max=1)
    (tmp_path / "groups").mkdir()
    assert read_memory_limit("0::/../\n0::/..\n0::/a/../..\n", tmp_path / "groups") is None


@given(lines=st.lists(GROUP_LINES, max_size=6), content=st.text(max_size=30) | st.integers().map(str))
def test_whatever_control_groups_say_a_limit_is_a_number_or_none(
    tmp_path: Path, lines: list[str], content: str
) -> None:
    for folder in (tmp_path, tmp_path / "memory"):
        folder.mkdir(exist_ok=True)
        for name in ("memory.max", "memory.limit_in_bytes", "memory.current"):
            (folder / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    limit = read_memory_limit("\n".join(lines), tmp_path)
    if limit is not None:
        assert re.fullmatch(r"[0-9]+\n?", content)
        assert limit.limit == int(content)


@pytest.mark.parametrize(
    ("available", "limit", "expected"), [(5, None, 5), (5, 3, 3), (5, 9, 5), (None, 3, 3), (None, None, None)]
)
def test_a_new_process_can_have_what_is_available_within_the_limit(
    available: int | None, limit: int | None, expected: int | None
) -> None:
    assert usable_memory(Memory(available=available), MemoryLimit(limit, None) if limit else None) == expected
