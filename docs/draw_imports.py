"""Draws docs/imports.svg: the stages of CONTRIBUTING.md's tables, and who imports whom, read from the code.

python docs/draw_imports.py
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from xml.sax.saxutils import escape

REPOSITORY = Path(__file__).resolve().parent.parent
PICTURE = REPOSITORY / "docs" / "imports.svg"
PACKAGES = {"cabochon_convert": REPOSITORY / "converter", "cabochon": REPOSITORY / "runtime"}
"""By the name of a package, from top to bottom of the picture, the folder that it lies in."""
SHARED = "everywhere"
"""The group of modules that all others may import; arrows to them would say nothing."""

WIDTH = 1000
BOX_HEIGHT, GAP, MARGIN = 38, 8, 14
ARC_ROOM = 96
"""Height above a package's boxes for its arrows, in pixels."""
STYLE = """
text { font-family: "DejaVu Sans", Verdana, sans-serif; text-anchor: middle; fill: #1f2933 }
.package { font-size: 15px; font-weight: bold; text-anchor: start } .note { font-size: 12px; text-anchor: start }
.group { font-size: 13px; font-weight: bold } .stage { font-size: 12px } .files { font-size: 10px; fill: #52606d }
.box { fill: #ffffff; stroke: #9aa5b1 } .column { fill: #e4edf5 }
path { fill: none } .arrow { stroke: #2f6f9f } .detour { stroke: #b8c9d8 } #head path { fill: #2f6f9f }
.backward { stroke: #c0392b; stroke-dasharray: 5 3 }
"""


Group = tuple[str, str]
"""Of stages: package and name."""
Arrow = tuple[Group, Group]


@dataclass(frozen=True, slots=True)
class Stage:
    """A row of a table."""

    package: str
    group: str
    name: str
    modules: tuple[str, ...]
    """In the table's order: the first is the one to begin with."""


def read_stages(guide: str) -> list[Stage]:
    """The rows of the tables in CONTRIBUTING.md, in their order."""
    stages, package = [], ""
    for line in guide.splitlines():
        if heading := re.match(r"\w+ \(`\w+/(\w+)`\)", line):
            package = heading[1]
        elif (row := re.match(r"\| ([\w ]+) \| ([\w ]+) \| (.*`.*) \|$", line)) and package:
            stages.append(Stage(package, row[1], row[2], tuple(re.findall(r"`(\w+)\.py`", row[3]))))
    return stages


def imported_names(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Modules that are imported when code runs, each with a name that is taken from it; none for types only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        yield from imported_names(node)


def read_imports() -> set[tuple[tuple[str, str], tuple[str, str]]]:
    """Who imports whom, each as package and module."""
    paths = {(name, path.stem): path for name, root in PACKAGES.items() for path in (root / name).glob("*.py")}
    found = set()
    for importer, path in paths.items():
        for dotted, name in imported_names(ast.parse(path.read_text(encoding="utf-8"))):
            package, _, module = dotted.partition(".")
            if package in PACKAGES:
                inner = module or (name if (package, name) in paths else "__init__")
                found.add((importer, (package, inner)))
    return found


@dataclass(frozen=True, slots=True)
class Drawing:
    """What the picture shows."""

    stages: list[Stage]
    arrows: Counter[Arrow]
    """How many imports there are from one group into another."""

    def groups(self, package: str) -> list[Group]:
        """Those of a package, in the order of the work."""
        rows = [stage for stage in self.stages if stage.package == package and stage.group != SHARED]
        return [key for key, _ in groupby((stage.package, stage.group) for stage in rows)]

    def backward(self) -> set[Arrow]:
        """Arrows from a group to a later one of its package."""
        places = {group: place for package in PACKAGES for place, group in enumerate(self.groups(package))}
        return {(a, b) for a, b in self.arrows if a[0] == b[0] and places[a] < places[b]}

    def arrows_within(self, package: str) -> list[tuple[str, Group, Group]]:
        """Arrows within a package, each with its style: a `detour` is one that a way by other groups goes, too."""
        inner = {(a, b) for a, b in self.arrows if a[0] == b[0] == package} - self.backward()
        detours = {(a, c) for a, b in inner for start, c in _reached(inner) if start == b} & inner
        return [("detour", *pair) for pair in sorted(detours)] + [("arrow", *pair) for pair in sorted(inner - detours)]


def _reached(arrows: set[Arrow]) -> set[Arrow]:
    """All pairs of which the first reaches the second."""
    reached = set(arrows)
    while more := {(a, d) for a, b in reached for c, d in arrows if b == c} - reached:
        reached |= more
    return reached


def read_drawing() -> Drawing:
    """The tables and the code as they are."""
    stages = read_stages((REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    group = {(stage.package, module): (stage.package, stage.group) for stage in stages for module in stage.modules}
    arrows = Counter((group[a], group[b]) for a, b in read_imports() if a in group and b in group)
    return Drawing(
        stages, Counter({(a, b): n for (a, b), n in arrows.items() if a != b and SHARED not in (a[1], b[1])})
    )


def draw(drawing: Drawing) -> str:
    """The picture as SVG."""
    parts: list[str] = []
    top = MARGIN
    for package, root in PACKAGES.items():
        if parts:
            parts.append(f'<path class="arrow" stroke-width="5" marker-end="url(#head)" d="M60 {top} v40"/>')
            parts.append(_text("note", 80, top + 26, "imports it, never the other way round"))
            top += 60
        parts.append(_text("package", MARGIN, top + 14, f"{root.name}/{package}"))
        lane, bottom = _draw_package(drawing, package, top + ARC_ROOM)
        parts += lane
        top = bottom + GAP
    head = '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" markerHeight="9" orient="auto"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}">',
            f"<style>{STYLE}</style>",
            f'<defs>{head} markerUnits="userSpaceOnUse"><path d="M0 0 L8 4 L0 8 z"/></marker></defs>',
            f'<rect width="{WIDTH}" height="{top}" fill="#fbfcfd"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _draw_package(drawing: Drawing, package: str, top: int) -> tuple[list[str], int]:
    """The columns of a package and the arrows above them; how far down they reach."""
    groups = drawing.groups(package)
    pitch = (WIDTH - 2 * MARGIN + GAP) / len(groups)
    middle = {group: MARGIN + pitch * place + (pitch - GAP) / 2 for place, group in enumerate(groups)}
    rows = {group: [stage for stage in drawing.stages if (stage.package, stage.group) == group] for group in groups}
    bottom = top + 26 + max(map(len, rows.values())) * (BOX_HEIGHT + 5)
    parts = [
        _arc(kind, middle[a] - 7, middle[b] + 7, top, -1, drawing.arrows[a, b])
        for kind, a, b in drawing.arrows_within(package)
    ]
    for group, stages in rows.items():
        left, width = middle[group] - (pitch - GAP) / 2, pitch - GAP
        parts.append(
            f'<rect class="column" x="{left:.0f}" y="{top}" width="{width:.0f}" height="{bottom - top}" rx="6"/>'
        )
        parts.append(_text("group", middle[group], top + 17, group[1]))
        for place, stage in enumerate(stages):
            y = top + 26 + place * (BOX_HEIGHT + 5)
            parts.append(
                f'<rect class="box" x="{left + 4:.0f}" y="{y}" width="{width - 8:.0f}" height="{BOX_HEIGHT}" rx="4"/>'
            )
            others = f" +{len(stage.modules) - 1}" if len(stage.modules) > 1 else ""
            parts.append(_text("stage", middle[group], y + 16, stage.name))
            parts.append(_text("files", middle[group], y + 30, f"{stage.modules[0]}{others}"))
    backward = sorted(each for each in drawing.backward() if each[0][0] == package)
    parts += [_arc("backward", middle[a] + 7, middle[b] - 7, bottom, 1, 1) for a, b in backward]
    return parts, bottom + (40 if backward else 0)


def _arc(kind: str, start: float, end: float, y: int, side: int, imports: int) -> str:
    """An arrow above (side −1) or below (1) the columns; the more imports, the thicker."""
    height = min(ARC_ROOM, 16 + abs(end - start) * 0.13) if side < 0 else 34
    width = 1 + (imports > 3) + (imports > 9) * 1.5
    curve = f"M{start:.0f} {y} C{start:.0f} {y + side * height:.0f} {end:.0f} {y + side * height:.0f} {end:.0f} {y}"
    return f'<path class="{kind}" stroke-width="{width:.1f}" marker-end="url(#head)" d="{curve}"/>'


def _text(kind: str, x: float, y: float, words: str) -> str:
    return f'<text class="{kind}" x="{x:.0f}" y="{y:.0f}">{escape(words)}</text>'


if __name__ == "__main__":
    PICTURE.write_text(draw(read_drawing()), encoding="utf-8")
