"""Writing a package folder so that it is either whole or not there at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cabochon.manifest import MANIFEST_NAME, FileRecord, Manifest
from cabochon.manifest_file import manifest_to_text
from cabochon.package import hash_file
from cabochon.whole_file import sync_folder
from cabochon_convert.folder_exchange import exchange_folders
from cabochon_convert.work_folder import OutputError, output_errors, replaced_name, sync_files, work_folder

REPORT_NAME = "report.json"
REPORT_PAGE_NAME = "report.html"
"""What a verification found; not part of the manifest, because it is written afterwards."""


@contextmanager
def new_package(folder: Path, *, replace: bool) -> Iterator[Path]:
    """A folder beside `folder` to write into; it becomes `folder` when the block ends, and vanishes when it fails.

    Args:
        folder: the package to be.
        replace: whether an existing package may be replaced; nothing else ever is.

    Raises:
        OutputError: something is there already, another conversion writes it, or the disk refuses.
    """
    folder = folder.resolve()
    with output_errors(folder), work_folder(folder) as beside:
        _refuse_existing(folder, replace)
        yield beside
        sync_files(beside)
        # Hours later, something else may stand there.
        _refuse_existing(folder, replace)
        _put_in_place(beside, folder)


def list_files(folder: Path, progress: Callable[[int], None]) -> tuple[FileRecord, ...]:
    """Size and SHA-256 of every file below a folder, in name order; reports the bytes it went through."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple(
        FileRecord(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=hash_file(path, progress))
        for path in paths
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json; the last file of a package to be written."""
    (folder / MANIFEST_NAME).write_text(manifest_to_text(manifest), encoding="utf-8")


def _refuse_existing(folder: Path, replace: bool) -> None:
    if not folder.name or folder == Path.cwd() or folder.is_mount():
        raise OutputError(f"{folder} cannot be replaced by a package: name a new folder below it.")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    own_files = _package_files(folder)
    if own_files is None:
        raise OutputError(f"{folder} exists and is not a package: choose another name.")
    if not replace:
        raise OutputError(f"{folder} exists already: choose another name, or replace it with --replace.")
    foreign = [path for path in folder.rglob("*") if not path.is_dir() and path not in own_files]
    if foreign:
        raise OutputError(f"{folder} holds {foreign[0].name}, which is not the package's: move it away first.")


def _package_files(folder: Path) -> set[Path] | None:
    """What a package of any format version consists of; None where there is no package."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        names = [record["path"] for record in manifest["files"]]
        if type(manifest["format_version"]) is int and manifest["created_by"].startswith("cabochon"):
            return {folder / name for name in (*names, MANIFEST_NAME, REPORT_NAME, REPORT_PAGE_NAME)}
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        pass
    return None


def _put_in_place(beside: Path, folder: Path) -> None:
    """Give the folder its name; what had it before is removed when that is on the disk."""
    if not folder.exists():
        beside.rename(folder)
        sync_folder(folder.parent)
        return
    if exchange_folders(beside, folder):
        sync_folder(folder.parent)
        return  # what was replaced lies beside now
    replaced = replaced_name(folder)
    folder.rename(replaced)
    try:
        beside.rename(folder)
    except BaseException:
        replaced.rename(folder)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)
