"""The services of a bundle of models/tiny under a systemd that runs: python rpi/test/services.py (as root).

Debian's packages for this machine's own processor make the system, so that nothing is emulated; it has no network.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from run import CANNOT, HERE, REPOSITORY, convert, unpack

from cabochon.package import open_package
from cabochon_convert.bundle_rpi import BundleSettings, find_constraints, write_rpi_bundle
from cabochon_convert.wheelhouse import RASPBERRY_PI_SYSTEMS, DeviceSystem

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""Debian's names."""
START_SECONDS = 60.0


def main() -> int:
    """Exit status 0 also where it cannot be tried, with a sentence that says why."""
    work = REPOSITORY / "build" / "test-rpi"
    work.mkdir(parents=True, exist_ok=True)
    likeness = RASPBERRY_PI_SYSTEMS[-1]
    machine = platform.machine()
    if machine not in ARCHITECTURES or sys.platform != "linux" or os.geteuid() != 0:
        print("skipped: a systemd of its own needs root, and Linux on amd64 or arm64.")
        return 0
    architecture = ARCHITECTURES[machine]
    script = [HERE / "make_root.sh", work / "roots", likeness.name, architecture]
    made = subprocess.run(script, stdout=subprocess.PIPE, text=True)
    if made.returncode == CANNOT:
        print(f"skipped: {made.stdout.strip()}")
        return 0
    made.check_returncode()
    root = work / "roots" / (likeness.name if architecture == "arm64" else f"{likeness.name}-{architecture}")
    system = DeviceSystem(likeness.name, likeness.python, likeness.glibc, machine)
    bundle = work / f"tiny-{architecture}.tar"
    settings = BundleSettings((system,), constraints=find_constraints(), replace=True)
    write_rpi_bundle([open_package(path) for path in convert(work, ["onnx"])], bundle, settings)
    unpack(root, bundle)
    subprocess.run(["cp", "--recursive", HERE, root / "home" / "pi" / "test"], check=True)
    # Without one, systemd asks whoever sits at the console for a time zone and a password.
    (root / "etc" / "machine-id").write_text("0123456789abcdef" * 2 + "\n")
    with booted(root) as first:
        command = ["nsenter", f"--target={first}", "--all", "python3", "/home/pi/test/inside.py", "services"]
        return subprocess.run(command, stdin=subprocess.DEVNULL).returncode


@contextmanager
def booted(root: Path) -> Iterator[int]:
    """Number of the system's first process, once systemd has started."""
    with subprocess.Popen([HERE / "boot_root.sh", root], stdin=subprocess.DEVNULL) as outside:
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                time.sleep(0.5)
                children = Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text().split()
                if children and Path(f"/proc/{children[0]}/comm").read_text() == "systemd\n":
                    ask = ["nsenter", f"--target={children[0]}", "--all", "systemctl", "is-system-running"]
                    state = subprocess.run(ask, capture_output=True, text=True).stdout.strip()
                    if state in ("running", "degraded"):
                        break
                if outside.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("systemd did not start in a namespace of its own")
            yield int(children[0])
        finally:
            outside.kill()


if __name__ == "__main__":
    sys.exit(main())
