"""Files that are too large for an APK: how they get onto a phone."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

APPLICATION = "dev.cabochon.demo"
DEVICE_FOLDER = f"/sdcard/Android/data/{APPLICATION}/files/model"
LARGEST_PACK, ALL_PACKS = 1_500_000_000, 4_000_000_000
"""Bytes of one Play asset pack, and of all packs of an app."""
SCRIPT_NAME, NOTES_NAME = "push.sh", "ASSET_PACKS.md"


def write_delivery(folder: Path, files: Sequence[tuple[str, int]]) -> None:
    """Write a script for adb and a layout of Play asset packs beside files that are to be pushed; nothing for none.

    Args:
        files: path below the folder and size in bytes of each.
    """
    if not files:
        return
    script = folder / SCRIPT_NAME
    script.write_text(_push_script([path for path, _ in files]), encoding="utf-8")
    script.chmod(0o755)
    (folder / NOTES_NAME).write_text(_pack_notes(files), encoding="utf-8")


def _push_script(paths: Sequence[str]) -> str:
    pushes = [f"adb push {shlex.quote(path)} {DEVICE_FOLDER}/{shlex.quote(path)}" for path in paths]
    lines = [
        "#!/bin/sh",
        "# Puts the model where the app looks for it; the app has to have been started once, which makes its folder.",
        "set -e",
        'cd "$(dirname "$0")"',
        f"adb shell mkdir -p {DEVICE_FOLDER}",
        *pushes,
    ]
    return "\n".join(lines) + "\n"


def pack_files(files: Sequence[tuple[str, int]]) -> tuple[list[list[str]], list[str]]:
    """Files in asset packs, largest first, each into the first pack with room; and those that fit none."""
    packs: list[tuple[list[str], int]] = []
    left_out: list[str] = []
    total = 0
    for path, size in sorted(files, key=lambda file: (-file[1], file[0])):
        if size > LARGEST_PACK or total + size > ALL_PACKS:
            left_out.append(path)
            continue
        total += size
        for index, (paths, used) in enumerate(packs):
            if used + size <= LARGEST_PACK:
                packs[index] = ([*paths, path], used + size)
                break
        else:
            packs.append(([path], size))
    return [paths for paths, _ in packs], left_out


def _pack_notes(files: Sequence[tuple[str, int]]) -> str:
    sizes = dict(files)
    packs, left_out = pack_files(files)
    lines = [
        "# Play asset packs",
        "",
        f"A pack holds at most {LARGEST_PACK / 1e9:g} GB and an app's packs {ALL_PACKS / 1e9:g} GB together. Each pack",
        "is a module with the plugin com.android.asset-pack, delivery `on-demand`, and its files below",
        "`src/main/assets/model/`:",
        "",
    ]
    for number, paths in enumerate(packs, 1):
        lines += [f"* `model_pack_{number}`, {sum(sizes[path] for path in paths) / 1e6:.1f} MB"]
        lines += [f"  * `{path}`, {sizes[path] / 1e6:.1f} MB" for path in paths]
    if left_out:
        lines += ["", "These fit no pack: let the app download them, or split the model otherwise."]
        lines += [f"* `{path}`, {sizes[path] / 1e6:.1f} MB" for path in left_out]
    return "\n".join(lines) + "\n"
