"""Plots of the verification report: bars in HTML, lines and points in SVG, no scripts, in the colours of the page."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

# A plot is drawn for this width and scales with its column; at half of it the words can still be read.
WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 16, 44
# About what a letter of 13 px takes.
LETTER_WIDTH, LINE_HEIGHT = 7.5, 16

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

STYLE = """
figure { margin: 0; min-width: 0 } figcaption { font-weight: 600; margin-bottom: .5rem }
figcaption small { display: block; font-weight: 400; color: var(--quiet) }
.bars { display: grid; grid-template-columns: minmax(0, max-content) minmax(4rem, 1fr) max-content; gap: .3rem .7rem;
  align-items: center; font-size: .9rem }
.bars > * { min-width: 0; overflow-wrap: anywhere }
.bars i { display: block; height: 1rem; border-radius: .2rem; background: var(--accent); min-width: 2px }
.bars i.pale { background: var(--pale) } .bars output { font-variant-numeric: tabular-nums; text-align: right }
svg { display: block; width: 100%; height: auto; overflow: visible }
svg text { font-size: 13px; fill: var(--ink) } svg text.quiet { fill: var(--quiet) }
svg .grid { stroke: var(--line); stroke-width: 1 } svg .curve { fill: none; stroke: var(--accent); stroke-width: 2 }
svg .area { fill: var(--accent); opacity: .12 } svg .dot { fill: var(--accent) }
svg .dot.pale { fill: var(--pale); stroke: var(--accent) }
svg .dot.hollow { fill: var(--paper); stroke: var(--ink); stroke-width: 2 }
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a chart."""

    label: str
    value: float
    text: str
    """What stands behind the bar."""
    is_pale: bool = False
    """Drawn paler: a value to compare with."""


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a plot of points."""

    label: str
    x: float
    y: float
    kind: str = ""
    """CSS classes: pale, hollow or none."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale."""

    title: str
    low: float
    high: float

    def place(self, value: float, start: float, end: float) -> float:
        """Where a value lies between two coordinates."""
        return start + (end - start) * (value - self.low) / (self.high - self.low)


def figure(name: str, title: str, note: str, content: str) -> str:
    """A plot with its heading and a line that says how to read it."""
    caption = f"{html.escape(title)}<small>{html.escape(note)}</small>"
    return f'<figure data-plot="{html.escape(name)}"><figcaption>{caption}</figcaption>{content}</figure>'


def bar_chart(bars: Sequence[Bar]) -> str:
    """Horizontal bars on a scale from 0 to the largest value."""
    largest = max((bar.value for bar in bars), default=0.0) or 1.0
    rows = [
        f"<span>{html.escape(bar.label)}</span>"
        f'<span><i{" class=pale" if bar.is_pale else ""} style="width:{max(0.0, bar.value) / largest:.1%}"></i></span>'
        f"<output>{html.escape(bar.text)}</output>"
        for bar in bars
    ]
    return f'<div class="bars">{"".join(rows)}</div>'


def line_plot(values: Sequence[float], x_title: str, y_title: str) -> str:
    """A curve over 0, 1, 2, …; each value is named when the pointer rests on it."""
    x_axis, y_axis = Axis(x_title, 0, max(1, len(values) - 1)), Axis(y_title, 0, 1.1 * max(values) or 1.0)
    places = [_place(x_axis, y_axis, index, value) for index, value in enumerate(values)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    floor = HEIGHT - BOTTOM
    area = f"{places[0][0]:.1f},{floor} {path} {places[-1][0]:.1f},{floor}"
    dots = [
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{index}: {value:.3g}</title></circle>'
        for index, (value, (x, y)) in enumerate(zip(values, places, strict=True))
    ]
    step = max(1, math.ceil(len(values) / 9))
    content = f'<polygon class="area" points="{area}"/><polyline class="curve" points="{path}"/>{"".join(dots)}'
    return _plot(x_axis, y_axis, [float(tick) for tick in range(0, len(values), step)], content)


def point_plot(points: Sequence[Point], x_axis: Axis, y_axis: Axis) -> str:
    """Named points."""
    places = [_place(x_axis, y_axis, point.x, point.y) for point in points]
    taken = [(x - 8, y - 8, x + 8, y + 8) for x, y in places]
    content = []
    for point, (x, y) in zip(points, places, strict=True):
        left, top = _free_place(x, y, LETTER_WIDTH * len(point.label), taken)
        taken.append((left, top, left + LETTER_WIDTH * len(point.label), top + LINE_HEIGHT))
        content.append(
            f'<circle class="dot {point.kind}" cx="{x:.1f}" cy="{y:.1f}" r="6">'
            f"<title>{html.escape(point.label)}: {point.x:.4g}, {point.y:.4g}</title></circle>"
            f'<text x="{left:.1f}" y="{top + 12:.1f}">{html.escape(point.label)}</text>'
        )
    return _plot(x_axis, y_axis, ticks(x_axis), "".join(content))


def _free_place(x: float, y: float, width: float, taken: Sequence[Box]) -> tuple[float, float]:
    """Left and top of a name near its point that hides no other: beside the point, else ever further above or below."""
    middle = y - LINE_HEIGHT / 2
    candidates = [(x + 11, middle), (x - 11 - width, middle)]
    for row in range(1, 6):
        tops = (y - 8 - row * LINE_HEIGHT, y - 8 + row * LINE_HEIGHT)
        candidates += [(left, top) for top in tops for left in (x - width / 2, x, x - width)]

    def is_free(place: tuple[float, float]) -> bool:
        left, top = place
        inside = left >= LEFT and left + width <= WIDTH and top >= 0 and top + LINE_HEIGHT <= HEIGHT - BOTTOM
        return inside and not any(
            left < box[2] and box[0] < left + width and top < box[3] and box[1] < top + LINE_HEIGHT for box in taken
        )

    return next((place for place in candidates if is_free(place)), candidates[0])


def ticks(axis: Axis, most: int = 5) -> list[float]:
    """At most so many round numbers on a scale."""
    step = 10 ** math.floor(math.log10((axis.high - axis.low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (axis.high - axis.low) / (factor * step) <= most)
    first, last = math.ceil(axis.low / step - 1e-9), math.floor(axis.high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _plot(x_axis: Axis, y_axis: Axis, x_ticks: Sequence[float], content: str) -> str:
    floor = HEIGHT - BOTTOM
    parts = []
    for tick in ticks(y_axis):
        _, y = _place(x_axis, y_axis, x_axis.low, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="quiet" x="{LEFT - 8}" y="{y + 4.5:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in x_ticks:
        x, _ = _place(x_axis, y_axis, tick, y_axis.low)
        parts.append(f'<text class="quiet" x="{x:.1f}" y="{floor + 18}" text-anchor="middle">{tick:.4g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(x_axis.title)}</text>')
    label = html.escape(f"{y_axis.title} by {x_axis.title}")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}{content}</svg>'


def _place(x_axis: Axis, y_axis: Axis, x: float, y: float) -> tuple[float, float]:
    return x_axis.place(x, LEFT, WIDTH - RIGHT), y_axis.place(y, HEIGHT - BOTTOM, TOP)
