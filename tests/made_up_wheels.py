"""Small wheels that are called like real ones, for pip without a network."""

from __future__ import annotations

import ensurepip
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path


def write_wheel(
    folder: Path,
    name: str,
    version: str,
    requires: Sequence[str] = (),
    *,
    tag: str = "py3-none-any",
    files: dict[str, str] | None = None,
) -> Path:
    """A wheel of these files; pip reads no more than this."""
    information = f"{name}-{version}.dist-info"
    metadata = [
        f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}",
        *(f"Requires-Dist: {each}" for each in requires),
    ]
    contents = {
        **(files or {f"{name}.py": ""}),
        f"{information}/METADATA": "\n".join(metadata) + "\n",
        f"{information}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
        f"{information}/licenses/LICENSE": "Do what you like.",
    }
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for each, content in contents.items():
            archive.writestr(each, content)
        archive.writestr(f"{information}/RECORD", "".join(f"{each},,\n" for each in contents))
    return path


def copy_pip(folder: Path) -> Path:
    """The wheel that Python itself brings."""
    places = (Path(ensurepip.__file__).parent / "_bundled", Path("/usr/share/python-wheels"))
    found = [path for place in places for path in place.glob("pip-*.whl")]
    return Path(shutil.copy(found[0], folder))
