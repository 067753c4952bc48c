"""Packages of the small model, verified once for all tests that look at reports."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.evaluation_data import read_evaluation_data
from cabochon_convert.progress import Silence
from cabochon_convert.recipes import RECIPES
from cabochon_convert.report import Report
from cabochon_convert.verify import verify_packages

RECIPE_NAMES = ("int4", "float")


@dataclass(frozen=True, slots=True)
class VerifiedPackages:
    """What one verification of several packages left behind."""

    data: Path
    folders: dict[str, Path]
    """By recipe."""
    reports: dict[str, Report]


def write_evaluation_data(checkpoint: Path, folder: Path) -> Path:
    """Two demo sounds with made-up texts: what the small model says to them is not of interest here."""
    folder.mkdir()
    for number, sound in enumerate(sorted((checkpoint / "demo").glob("*.wav"))[:2]):
        shutil.copy(sound, folder / f"clip{number}.wav")
        (folder / f"clip{number}.txt").write_text("The swimming pool & the <b>bar</b> are closed.")
    (folder / "clip0.de.txt").write_text("Das Schwimmbad ist geschlossen.")
    (folder / "prompts.txt").write_text("Where is the station?\nGood morning!\tGood morning!\n")
    return folder


def verify_small_model(checkpoint: Path, folder: Path) -> VerifiedPackages:
    """Convert with several recipes and verify all of them in one run."""
    data = write_evaluation_data(checkpoint, folder / "data")
    folders = {name: folder / name for name in RECIPE_NAMES}
    for name, package in folders.items():
        convert_checkpoint(checkpoint, package, ConversionSettings(RECIPES[name]))
    reports = verify_packages(list(folders.values()), checkpoint, Silence(), read_evaluation_data(data, "English"))
    return VerifiedPackages(data, folders, dict(zip(folders, reports, strict=True)))
