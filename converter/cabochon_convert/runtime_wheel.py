"""A wheel of the runtime that is running here, without the converter: what a device installs.

https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import zipfile
from pathlib import Path

import cabochon
from cabochon.errors import RequestError

_TIME = (1980, 1, 1, 0, 0, 0)
"""The same runtime always makes the same wheel."""
_WHEEL = "Wheel-Version: 1.0\nGenerator: cabochon\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_ENTRY_POINTS = "[console_scripts]\ncabochon = cabochon.cli:main\n"


def runtime_metadata() -> str:
    """METADATA of the installed distribution, with the version of the code that runs."""
    try:
        text = importlib.metadata.distribution("cabochon").read_text("METADATA")
    except importlib.metadata.PackageNotFoundError:
        text = None
    if text is None:
        raise RequestError("cabochon is not installed as a distribution: install it with pip, then make the bundle.")
    head, blank, description = text.partition("\n\n")
    lines = [
        f"Version: {cabochon.__version__}" if line.startswith("Version: ") else line for line in head.splitlines()
    ]
    return "\n".join(lines) + blank + description


def write_runtime_wheel(folder: Path) -> Path:
    """Write `cabochon-VERSION-py3-none-any.whl` into a folder; returns its path."""
    source = Path(cabochon.__file__).parent
    name = f"cabochon-{cabochon.__version__}"
    files = {
        f"cabochon/{path.relative_to(source).as_posix()}": path.read_bytes()
        for path in sorted(source.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    information = {"METADATA": runtime_metadata(), "WHEEL": _WHEEL, "entry_points.txt": _ENTRY_POINTS}
    license_text = importlib.metadata.distribution("cabochon").read_text("licenses/LICENSE")
    if license_text is not None:
        information["licenses/LICENSE"] = license_text
    files |= {f"{name}.dist-info/{key}": text.encode() for key, text in information.items()}
    record = f"{name}.dist-info/RECORD"
    lines = [f"{path},sha256={_digest(content)},{len(content)}\n" for path, content in files.items()]
    files[record] = ("".join(lines) + f"{record},,\n").encode()
    wheel = folder / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in files.items():
            entry = zipfile.ZipInfo(path, _TIME)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return wheel


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
