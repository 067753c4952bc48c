"""What this machine is: processor, memory and limits, as Linux tells them in text files.

Whatever such a file holds, reading it raises nothing: what cannot be understood is unknown.
"""

from __future__ import annotations

import math
import mmap
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 62
"""What version 1 of control groups says where there is no limit is little less than 2 ** 63."""

X86_FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni")
ARM_FEATURES = ("asimd", "asimdhp", "asimddp", "i8mm")
"""Half precision, dot products and multiplications of integer matrices, as /proc/cpuinfo calls them."""


@dataclass(frozen=True, slots=True)
class Processor:
    """What runs the model."""

    model: str
    """Empty where it is unknown."""
    architecture: str
    """As `uname -m` gives it."""
    features: tuple[str, ...]
    """Of those that the engines' kernels look for, the ones that it has."""
    wanted_features: tuple[str, ...]
    """That kernels for this architecture look for; none where it is another one."""
    cores: int
    usable_cores: int
    """That this process may run on."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes; None where it is unknown."""

    total: int | None = None
    available: int | None = None
    """Without swapping."""
    swap_total: int | None = None
    swap_free: int | None = None


@dataclass(frozen=True, slots=True)
class ResidentMemory:
    """Of a process, in bytes; None where it is unknown."""

    now: int | None = None
    peak: int | None = None
    anonymous: int | None = None
    """That lies in no file, so that it can only be swapped out."""


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """Of the control group that a container or service runs in."""

    limit: int
    """Bytes."""
    used: int | None
    """Bytes, those of cached files included; None where it is unknown."""


def read_text(path: Path, longest: int = 1 << 20) -> str:
    """A file of the system; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(longest).decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""


def find_processor() -> Processor:
    """The processor of this machine."""
    text = read_text(PROC / "cpuinfo")
    return parse_processor(text, platform.machine(), os.cpu_count() or 1, usable_processors())


def parse_processor(text: str, architecture: str, cores: int, usable_cores: int) -> Processor:
    """Args: text: of /proc/cpuinfo."""
    wanted = {
        "x86_64": X86_FEATURES, "amd64": X86_FEATURES, "aarch64": ARM_FEATURES, "arm64": ARM_FEATURES,
    }.get(architecture.lower(), ())  # fmt: skip
    fields = _fields(text)
    present = set((fields.get("flags") or fields.get("features") or "").lower().split())
    model = fields.get("model name") or fields.get("model") or ""
    if not model and "cpu part" in fields:
        model = f"implementer {fields.get('cpu implementer', '?')}, part {fields['cpu part']}"
    features = tuple(name for name in wanted if name in present)
    return Processor(_printable(model), architecture, features, wanted, cores, usable_cores)


def find_memory() -> Memory:
    """The memory of this machine, whatever limit this process has."""
    return parse_memory(read_text(PROC / "meminfo"))


def parse_memory(text: str) -> Memory:
    """Args: text: of /proc/meminfo."""
    fields = _fields(text)
    names = ("memtotal", "memavailable", "swaptotal", "swapfree")
    return Memory(*(_kilobytes(fields.get(name, "")) for name in names))


def resident_memory(process: str = "self") -> ResidentMemory:
    """What a process keeps in memory. Args: process: its number."""
    return parse_resident_memory(read_text(PROC / process / "status"))


def parse_resident_memory(text: str) -> ResidentMemory:
    """Args: text: of /proc/PROCESS/status."""
    fields = _fields(text)
    return ResidentMemory(*(_kilobytes(fields.get(name, "")) for name in ("vmrss", "vmhwm", "rssanon")))


def find_memory_limit() -> MemoryLimit | None:
    """The tightest limit of the control groups that this process is in; None where there is none."""
    return read_memory_limit(read_text(PROC / "self" / "cgroup"), CGROUPS)


def read_memory_limit(text: str, root: Path) -> MemoryLimit | None:
    """The tightest limit of a control group and those around it.

    Args:
        text: of /proc/PROCESS/cgroup.
        root: where control groups lie.
    """
    limits = []
    for folder, is_unified in _control_groups(text, root, "memory"):
        names = ("memory.max", "memory.current") if is_unified else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit = _bytes(read_text(folder / names[0], 64))
        if limit is not None and limit < _NO_LIMIT:
            limits.append(MemoryLimit(limit, _bytes(read_text(folder / names[1], 64))))
    return min(limits, key=lambda found: found.limit, default=None)


def find_processor_quota() -> float | None:
    """Processors' worth of time that the control groups of this process let it have; None where nothing limits it."""
    return read_processor_quota(read_text(PROC / "self" / "cgroup"), CGROUPS)


def read_processor_quota(text: str, root: Path) -> float | None:
    """The tightest quota of a control group and those around it, such as CPUQuota= of a service.

    Args:
        text: of /proc/PROCESS/cgroup.
        root: where control groups lie.
    """
    quotas = []
    for folder, is_unified in _control_groups(text, root, "cpu"):
        if is_unified:
            quota, _, period = read_text(folder / "cpu.max", 64).partition(" ")
        else:
            quota, period = (read_text(folder / f"cpu.cfs_{name}_us", 64) for name in ("quota", "period"))
        microseconds = _bytes(quota), _bytes(period)
        if microseconds[0] and microseconds[1]:
            quotas.append(microseconds[0] / microseconds[1])
    return min(quotas, default=None)


def usable_processors() -> int:
    """That this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processors_worth(usable: int, quota: float | None) -> int:
    """Threads that can compute at the same time: more of them would wait for each other while their time is used up."""
    return usable if quota is None else max(1, min(usable, math.ceil(quota)))


def usable_memory(memory: Memory, limit: MemoryLimit | None) -> int | None:
    """Bytes that a new process could have without swapping; None where that is unknown."""
    room = limit.limit if limit else None
    known = [each for each in (memory.available, room) if each is not None]
    return min(known) if known else None


def page_size() -> int:
    """Bytes of a page of memory."""
    return mmap.PAGESIZE


def _fields(text: str) -> dict[str, str]:
    """`name : value` lines; of a name that comes again, the first one."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip().lower(), value.strip())
    return fields


def _kilobytes(value: str) -> int | None:
    """`123 kB` in bytes."""
    match = re.fullmatch(r"([0-9]{1,15}) kB", value)
    return int(match[1]) * 1024 if match else None


def _bytes(text: str) -> int | None:
    match = re.fullmatch(r"([0-9]{1,19})\n?", text)
    return int(match[1]) if match else None


def _control_groups(text: str, root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Folders of a control group and of those around it, and whether they are of version 2."""
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            folders = [root, root / "unified"]
        elif controller in controllers.split(","):
            folders = [root / controller]
        else:
            continue
        for folder in folders:
            for each in _and_around(group):
                yield folder / each, number == "0" and not controllers


def _and_around(group: str) -> list[str]:
    """A control group's folder and those that it lies in, below the root; only the root where it leads elsewhere."""
    parts = [part for part in PurePosixPath(group).parts if part != "/"]
    if ".." in parts or "\0" in group or len(parts) > 64:
        parts = []
    return ["/".join(parts[:count]) for count in range(len(parts), -1, -1)]


def _printable(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:100]
