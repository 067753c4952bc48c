"""A verification report as one self-contained HTML page, to be looked at rather than read."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
.verdict { display: inline-block; padding: .2rem .7rem; border-radius: .3rem; background: #e7f3ea; color: #1c6b34 }
.verdict.failed { background: #fbe9e7; color: #a5281b }
svg text { font: 13px system-ui, sans-serif; fill: #222 } .bar { fill: #3b6fb6 } .bar.second { fill: #b9cbe4 }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .3rem .6rem; vertical-align: top }
tr { border-bottom: 1px solid #ddd } td.number { text-align: right; font-variant-numeric: tabular-nums }
del { color: #a5281b }
"""
_BAR_HEIGHT = 22
_LABEL_WIDTH = 230
_CHART_WIDTH = 560


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a chart."""

    label: str
    value: float
    text: str
    """What stands behind the bar."""
    is_second: bool = False
    """Drawn paler: the value that the one before is compared with."""


def render_page(report: dict[str, Any]) -> str:
    """The page for the content of a report.json."""
    passed, limited = report["passed"], report["tolerance"] is not None
    verdict = ("passed" if passed else "failed") if limited else "measured (a rounding recipe has no limit)"
    title = f"{report['package']}, recipe {report['recipe']}"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p><span class="verdict{"" if passed else " failed"}">{verdict}</span> '
        f"{report['size'] / 1e6:,.1f} MB on the engine {html.escape(report['engine'])}, "
        "compared with transformers in float32.</p>",
        *_speech_parts(report["speech"]),
        "<h2>Audio embeddings: relative error by length of the clip</h2>",
        _chart([_error_bar(f"{row['seconds']:.1f} s, {row['tokens']} tokens", row) for row in report["audio"]]),
        "<h2>Logits: relative error by prompt</h2>",
        _chart([_error_bar(row["prompt"], row) for row in report["logits"]]),
        "<h2>Logits: divergence from the checkpoint, in nats</h2>",
        _chart([Bar(row["prompt"], row["divergence"], f"{row['divergence']:.2g}") for row in report["logits"]]),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</html>\n"
    )


def _speech_parts(speech: dict[str, Any] | None) -> list[str]:
    if speech is None:
        return []
    rates = [
        Bar("word error rate, package", speech["word_error_rate"], f"{speech['word_error_rate']:.2f} %"),
        Bar(
            "word error rate, checkpoint",
            speech["reference_word_error_rate"],
            f"{speech['reference_word_error_rate']:.2f} %",
            is_second=True,
        ),
    ]
    rows = "\n".join(_example_row(example) for example in speech["examples"])
    return [
        f"<h2>Speech in {html.escape(speech['language'])}: {len(speech['examples'])} examples</h2>",
        _chart(rates),
        "<h2>What was said and what was written</h2>",
        "<table><tr><th>sound<th>said<th>checkpoint<th>package<th>divergence<th>perplexity, package / checkpoint</tr>"
        f"{rows}</table>",
    ]


def _example_row(example: dict[str, Any]) -> str:
    def answer(text: str) -> str:
        escaped = html.escape(text)
        return escaped if text == example["text"] else f"<del>{escaped}</del>"

    return (
        f"<tr><td>{html.escape(example['sound'])}<td>{html.escape(example['text'])}"
        f"<td>{answer(example['reference_answer'])}<td>{answer(example['answer'])}"
        f'<td class="number">{example["divergence"]:.2g}'
        f'<td class="number">{example["perplexity"]:.2f} / {example["reference_perplexity"]:.2f}</tr>'
    )


def _error_bar(label: str, row: dict[str, Any]) -> Bar:
    return Bar(label, row["relative_error"], f"{row['relative_error']:.2g}")


def _chart(bars: Sequence[Bar]) -> str:
    """Horizontal bars on a scale from 0 to the largest value."""
    largest = max((bar.value for bar in bars), default=0.0) or 1.0
    rows = []
    for index, bar in enumerate(bars):
        top, width = index * _BAR_HEIGHT, max(1.0, bar.value / largest * _CHART_WIDTH)
        kind = "bar second" if bar.is_second else "bar"
        rows.append(
            f'<text x="{_LABEL_WIDTH - 8}" y="{top + 16}" text-anchor="end">{html.escape(bar.label)}</text>'
            f'<rect class="{kind}" x="{_LABEL_WIDTH}" y="{top + 3}" width="{width:.1f}" height="{_BAR_HEIGHT - 6}"/>'
            f'<text x="{_LABEL_WIDTH + width + 6:.1f}" y="{top + 16}">{html.escape(bar.text)}</text>'
        )
    width, height = _LABEL_WIDTH + _CHART_WIDTH + 90, len(bars) * _BAR_HEIGHT
    return f'<svg viewBox="0 0 {width} {height}" width="100%" role="img">{"".join(rows)}</svg>'
