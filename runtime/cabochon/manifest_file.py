"""Reading and writing manifest.json.

Earlier format versions are brought to today's first. Then it is read strictly: an unknown format version, an unknown or
missing key and an impossible value are each refused in one sentence.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cabochon.errors import PackageError, named_file
from cabochon.json_dataclass import from_json
from cabochon.manifest import FORMAT_VERSION, MANIFEST_NAME, Manifest
from cabochon.manifest_migration import is_migratable, migrate

# A manifest of E4B is about 100 KB; anything far larger is not a manifest.
MAX_MANIFEST_BYTES = 16 * 1024 * 1024


def manifest_to_text(manifest: Manifest) -> str:
    """The manifest as the JSON text of manifest.json."""
    value = asdict(manifest)
    for engine in value["engines"].values():
        # So that packages without one stay readable for the cabochon before drafters.
        if engine["drafter"] is None:
            del engine["drafter"]
        for cache in engine["caches"]:
            if cache["storage"] == "float32":  # likewise before integer caches
                for key in ("storage", "more_present_keys", "more_present_values"):
                    del cache[key]
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def manifest_from_text(text: str, where: str) -> Manifest:
    """Read the JSON text of a manifest; `where` names it in errors.

    Raises:
        PackageError: the text is not JSON, is of another format version, or a key or value is wrong.
    """
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{where} is not valid JSON ({error}): convert the checkpoint again.") from None
    version = value.get("format_version") if isinstance(value, dict) else None
    if version is None:
        raise PackageError(f"{where} has no format_version: it is not a cabochon manifest.")
    if not is_migratable(version, FORMAT_VERSION):
        raise PackageError(
            f"{where} has format version {version!r}, this cabochon reads versions up to {FORMAT_VERSION}: "
            "convert the checkpoint again or install the cabochon that wrote it."
        )
    try:
        manifest = from_json(Manifest, migrate(value, FORMAT_VERSION))
        if not manifest.engines:
            raise ValueError("no engine is listed")
    except ValueError as error:
        raise PackageError(f"{where} is not usable ({error}): convert the checkpoint again.") from None
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json` of a package folder; PackageError when it is missing or wrong."""
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise PackageError(f"{folder} is not a folder: expected a package that cabochon-convert wrote.")
    if not path.is_file():
        raise PackageError(f"{folder} has no {MANIFEST_NAME}: expected a package that cabochon-convert wrote.")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise PackageError(f"{path} is {path.stat().st_size} bytes long, too long for a manifest.")
    try:
        with named_file(path):
            text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise PackageError(f"{path} is not UTF-8 text: convert the checkpoint again.") from None
    return manifest_from_text(text, str(path))
