"""Pages that say what is so: the picture of the architecture, the tables that it is drawn from, and links."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from draw_imports import PACKAGES, PICTURE, draw, read_drawing

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDERS = (".", "docs", "benchmarks", "rpi", "android_demo", "models/tiny")
PAGES = sorted(path for folder in FOLDERS for path in (REPOSITORY / folder).glob("*.md"))


def headings(page: Path) -> set[str]:
    """Anchors of a page, as GitHub makes them of its headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        destination = (page.parent / path).resolve() if path else page
        assert destination.exists(), f"{target} is not there"
        assert not anchor or anchor in headings(destination), f"{target} has no such heading"


def test_the_guide_names_every_module_once_and_none_that_is_gone() -> None:
    named = Counter((stage.package, module) for stage in read_drawing().stages for module in stage.modules)
    there = {(name, path.stem) for name, root in PACKAGES.items() for path in (root / name).glob("*.py")}
    assert named == Counter(there)


def test_the_picture_of_the_architecture_shows_the_imports_of_the_code() -> None:
    assert PICTURE.read_text(encoding="utf-8") == draw(read_drawing()), "stale: make docs"


def test_stages_import_from_their_own_group_and_those_before_it() -> None:
    assert not list(read_drawing().backward())


def test_readme_answers_what_why_how_and_how_fast_within_its_first_screen() -> None:
    screen = "\n".join((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()[:42])
    for answer in (
        "**cabochon** takes",
        "cabochon-convert ",
        "cabochon translate ",
        "LiteRT-LM",
        "llama.cpp",
        "decode at",
    ):
        assert answer in screen
