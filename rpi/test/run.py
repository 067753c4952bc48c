"""Installs a bundle of models/tiny on emulated Raspberry Pis and tries it there: what `make test-rpi` runs.

python rpi/test/run.py [--full] [--system trixie] [--cpu cortex-a76] [--engine onnx]

Debian's own arm64 packages make the system, qemu the processor (cortex-a76: Raspberry Pi 5, cortex-a72: Pi 4), and
namespaces without a network keep them apart, so that neither root nor docker is needed. The short path takes one
system and one processor; --full takes both of both. Speed, memory bandwidth, heat, real microphones, control groups and
pages of 16 KB cannot be tried like this; the last of them is checked in the wheels.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
TINY = REPOSITORY / "models" / "tiny"
SYSTEMS, PROCESSORS, ENGINES = ("trixie", "bookworm"), ("cortex-a76", "cortex-a72"), ("onnx", "litert")
EXACT = "tiny-float"
CANNOT = 75
"""Status of make_root.sh where it lacks something that a machine need not have."""
LARGEST_SHARE = 0.1
"""Of what the recipe's rounding makes on this machine, by the measure of fidelity reports: how far the next-token
distributions of both machines may diverge."""
SMALLEST_AGREEMENT = 0.95
"""Share of steps at which both machines prefer the same token: one of 80 was other with onnxruntime, where two were
about as likely."""
FIRST_STEPS = ("install", "units", "answers", "microphone", "wyoming", "translate", "doctor")
OTHER_STEPS = ("answers", "wyoming", "doctor")
"""On the other processor: the installation is the same."""


def main() -> int:
    """Exit status 0 also where it cannot be tried, with a sentence that says why."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="both systems, both processors, byte code compiled")
    parser.add_argument("--system", choices=SYSTEMS, action="append", help="(default: trixie)")
    parser.add_argument("--cpu", choices=PROCESSORS, action="append", help="(default: cortex-a76)")
    parser.add_argument("--engine", choices=ENGINES, action="append", help="(default: all that can be converted for)")
    parser.add_argument(
        "--work", type=Path, default=REPOSITORY / "build" / "test-rpi",
        help="systems and packages that are there from before are used again (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--steps", nargs="+", help="of inside.py, instead of all")
    arguments = parser.parse_args()
    systems = arguments.system or (SYSTEMS if arguments.full else SYSTEMS[:1])
    processors = arguments.cpu or (PROCESSORS if arguments.full else PROCESSORS[:1])
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if reason := why_not(work, systems):
        print(f"skipped: {reason}")
        return 0
    packages = convert(work, arguments.engine or ENGINES)
    bundle = work / "tiny-rpi.tar"
    if not arguments.steps or "install" in arguments.steps:
        call("bundle", *packages, "--for", "rpi", "--output", bundle, "--replace")
    record(work, [*packages, exact_package(work)])
    for system in systems:
        root = work / "roots" / system
        if not arguments.steps or "install" in arguments.steps:
            unpack(root, bundle)
        shutil.copytree(HERE, root / "home" / "pi" / "test", dirs_exist_ok=True)
        for index, processor in enumerate(processors):
            steps = list(arguments.steps or (FIRST_STEPS if index == 0 else OTHER_STEPS))
            if not arguments.steps and index == len(processors) - 1:
                steps.append("uninstall")
            print(f"{system}, {processor}", flush=True)
            status = enter(root, processor, "python3", "/home/pi/test/inside.py", *steps, full=arguments.full)
            if status:
                return status
            if "answers" in steps and not compare(work, root, packages):
                return 1
    return 0


def why_not(work: Path, systems: tuple[str, ...] | list[str]) -> str:
    """Why this machine cannot emulate one; empty where it can. Makes the systems."""
    if sys.platform != "linux" or shutil.which("unshare") is None or shutil.which("dpkg-deb") is None:
        return "emulation needs Linux with unshare and dpkg-deb."
    trial = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "--net", "true"], capture_output=True)
    if trial.returncode:
        return "this machine allows no user namespaces (sysctl kernel.unprivileged_userns_clone, containers)."
    for system in systems:
        made = subprocess.run([HERE / "make_root.sh", work / "roots", system], stdout=subprocess.PIPE, text=True)
        if made.returncode == CANNOT:
            return made.stdout.strip()
        made.check_returncode()
    if enter(work / "roots" / systems[0], PROCESSORS[0], "/bin/true"):
        return "a user namespace of this machine cannot have its own binfmt_misc (that needs Linux 6.7 or newer)."
    return ""


def enter(root: Path, processor: str, *command: str, full: bool = False) -> int:
    """Status of a command on the emulated machine."""
    emulator = root.parent / "qemu-aarch64"
    environment = ["CABOCHON_FULL=1"] if full else []
    words = [HERE / "enter_root.sh", root, emulator, processor, "env", *environment, *command]
    return subprocess.run(words, stdin=subprocess.DEVNULL).returncode


def convert(work: Path, engines: tuple[str, ...] | list[str]) -> list[Path]:
    """models/tiny, for each engine, where it is not there from before; LiteRT only where its converter is installed."""
    packages = []
    for engine in engines:
        package = work / "packages" / f"tiny-{engine}"
        if engine == "litert" and importlib.util.find_spec("litert_torch") is None:
            print("note: without LiteRT, whose converter (pip install '.[convert-litert]') is not installed.")
            continue
        if not (package / "manifest.json").is_file():
            call(TINY, package, "--target", engine, "--no-vision", "--replace")
        packages.append(package)
    return packages


def exact_package(work: Path) -> Path:
    """models/tiny without rounding, which no bundle holds."""
    package = work / "packages" / EXACT
    if not (package / "manifest.json").is_file():
        call(TINY, package, "--recipe", "float", "--no-vision", "--replace")
    return package


def call(*arguments: object) -> None:
    """Run cabochon-convert."""
    command = [sys.executable, "-c", "import sys; from cabochon_convert.cli import main; sys.exit(main())"]
    subprocess.run([*command, *map(str, arguments)], check=True)


def record(work: Path, packages: list[Path]) -> None:
    """What this machine answers."""
    for package in packages:
        script = [sys.executable, HERE / "record_answers.py", package, TINY / "demo"]
        subprocess.run([*script, work / f"answers-{package.name}.npz"], check=True)


def unpack(root: Path, bundle: Path) -> None:
    """A system as it was made, with the bundle and the sounds in a home directory."""
    home = root / "home" / "pi"
    for folder in (home, root / "opt", root / "root", root / "usr" / "local", root / "etc" / "default"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for unit in (root / "etc" / "systemd" / "system").glob("cabochon-*"):
        unit.unlink()
    subprocess.run(["tar", "--extract", "--file", bundle, "--directory", home], check=True)
    shutil.copytree(TINY / "demo", home / "demo")


@dataclass(frozen=True, slots=True)
class Difference:
    """Between two recordings of the same questions."""

    same_texts: int
    texts: int
    divergence: float
    """Nats, the mean over all steps (Kullback-Leibler)."""
    agreement: float
    """Share of steps at which both prefer the same token."""
    steps: int


def compare(work: Path, root: Path, packages: list[Path]) -> bool:
    """Whether the emulated machine answers what this one does, and as surely."""
    is_close = True
    exact = work / f"answers-{EXACT}.npz"
    for package in packages:
        name = f"answers-{package.name}.npz"
        recipe = differ(exact, work / name)
        machine = differ(work / name, root / "home" / "pi" / name)
        limit = LARGEST_SHARE * recipe.divergence
        passed = machine.divergence <= limit and machine.agreement >= SMALLEST_AGREEMENT
        is_close &= passed
        print(
            f"  {package.name} here and there: {machine.same_texts} of {machine.texts} answers the same, divergence "
            f"{machine.divergence:.1e} nats (at most {limit:.1e}: rounding makes {recipe.divergence:.1e}), the same "
            f"token at {100 * machine.agreement:.1f} % of {machine.steps} steps (at least "
            f"{100 * SMALLEST_AGREEMENT:.0f}){'' if passed else ': too far apart'}",
            flush=True,
        )
    return is_close


def differ(expected_file: Path, found_file: Path) -> Difference:
    """What record_answers.py wrote of two machines or packages."""
    with np.load(expected_file) as ours, np.load(found_file) as theirs:
        divergences, agreements = [], []
        for index in range(len(ours["texts"])):
            expected, found = log_softmax(ours[f"logits_{index}"]), log_softmax(theirs[f"logits_{index}"])
            # Behind the first other token, the two answer different questions.
            same = min(len(expected), len(found))
            tokens = expected[:same].argmax(1) == found[:same].argmax(1)
            comparable = same if tokens.all() else int(tokens.argmin()) + 1
            expected, found = expected[:comparable], found[:comparable]
            divergences.extend((np.exp(expected) * (expected - found)).sum(axis=1))
            agreements.extend(tokens[:comparable])
        same_texts = int((ours["texts"] == theirs["texts"]).sum())
        count = len(ours["texts"])
    return Difference(same_texts, count, float(np.mean(divergences)), float(np.mean(agreements)), len(agreements))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural logarithms of probabilities, float64 [steps, vocabulary]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


if __name__ == "__main__":
    sys.exit(main())
