"""A wheel of the runtime that is running here, without the converter: what a device installs.

https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import tomllib
import zipfile
from pathlib import Path

import cabochon
from cabochon.errors import RequestError

_TIME = (1980, 1, 1, 0, 0, 0)
"""The same runtime always makes the same wheel."""
_WHEEL = "Wheel-Version: 1.0\nGenerator: cabochon\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_ENTRY_POINTS = "[console_scripts]\ncabochon = cabochon.cli:main\n"


def runtime_metadata() -> tuple[str, str]:
    """METADATA and licence of the runtime: a clone's own, because what was once installed from it may be older."""
    clone = Path(cabochon.__file__).resolve().parents[2]
    if (clone / "pyproject.toml").is_file() and (clone / "LICENSE").is_file():
        return _metadata_of_clone(clone / "pyproject.toml"), (clone / "LICENSE").read_text(encoding="utf-8")
    try:
        distribution = importlib.metadata.distribution("cabochon")
    except importlib.metadata.PackageNotFoundError:
        distribution = None
    texts = [distribution.read_text(name) for name in ("METADATA", "licenses/LICENSE")] if distribution else []
    if not texts or texts[0] is None or texts[1] is None:
        raise RequestError("cabochon was not installed with pip: install it, then make the bundle.")
    return texts[0], texts[1]


def _metadata_of_clone(path: Path) -> str:
    """https://packaging.python.org/en/latest/specifications/core-metadata/, as far as a wheelhouse needs it."""
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    lines = ["Metadata-Version: 2.4", f"Name: {project['name']}", f"Version: {cabochon.__version__}"]
    lines += [f"Summary: {project['description']}", f"License-Expression: {project['license']}"]
    lines += ["License-File: LICENSE", f"Requires-Python: {project['requires-python']}"]
    lines += [f"Requires-Dist: {each}" for each in project["dependencies"]]
    for extra, requirements in project["optional-dependencies"].items():
        lines.append(f"Provides-Extra: {extra}")
        for each in requirements:
            name, _, marker = (part.strip() for part in each.partition(";"))
            condition = f"({marker}) and extra == '{extra}'" if marker else f"extra == '{extra}'"
            lines.append(f"Requires-Dist: {name}; {condition}")
    return "\n".join(lines) + "\n"


def write_runtime_wheel(folder: Path) -> Path:
    """Write `cabochon-VERSION-py3-none-any.whl` into a folder; returns its path."""
    source = Path(cabochon.__file__).parent
    name = f"cabochon-{cabochon.__version__}"
    files = {
        f"cabochon/{path.relative_to(source).as_posix()}": path.read_bytes()
        for path in sorted(source.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    metadata, licence = runtime_metadata()
    information = {"METADATA": metadata, "WHEEL": _WHEEL, "entry_points.txt": _ENTRY_POINTS}
    information["licenses/LICENSE"] = licence
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
