"""A verification report as one self-contained HTML page, to be looked at rather than read."""

from __future__ import annotations

import html
from typing import Any

from cabochon_convert.report_answers import ANSWERS_STYLE, answers_section
from cabochon_convert.report_plots import STYLE, Axis, Bar, Point, bar_chart, figure, line_plot, point_plot

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d2330; --quiet: #626b7c; --line: #dfe3ea; --card: #f5f7fa;
  --accent: #2f6fc4; --pale: #b7cdeb; --good: #1c6b34; --good-paper: #e3f3e7; --bad: #a5281b; --bad-paper: #fbe6e3 }
@media (prefers-color-scheme: dark) { :root { --paper: #14171d; --ink: #e5e9f0; --quiet: #98a2b3; --line: #323945;
  --card: #1d222b; --accent: #6ea8f2; --pale: #34527c; --good: #84d69b; --good-paper: #17321f; --bad: #ff9d8f;
  --bad-paper: #43201c } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 72rem;
  margin: 0 auto; padding: 1.5rem 1rem 3rem }
header p { margin: 0; color: var(--quiet); overflow-wrap: anywhere }
h1 { font-size: clamp(1.4rem, 4vw, 2.1rem); line-height: 1.2; margin: .5rem 0 }
h2 { font-size: 1.25rem; margin: 2.5rem 0 1rem }
header .verdict { display: inline-block; padding: .1rem .7rem; border-radius: 1rem; background: var(--good-paper);
  color: var(--good); font-weight: 600 }
header .verdict.measured { background: var(--card); color: var(--quiet) }
header .verdict.failed { background: var(--bad-paper); color: var(--bad) }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .8rem; margin-top: 1.5rem }
.tiles div { background: var(--card); border-radius: .6rem; padding: .8rem 1rem }
.tiles b { display: block; font-size: 1.7rem; line-height: 1.25; font-variant-numeric: tabular-nums }
.tiles span, .tiles small { display: block; color: var(--quiet) } .tiles small { font-size: .85rem }
.plots { columns: 2 26rem; column-gap: 1rem }
.plots figure { background: var(--card); border-radius: .6rem; padding: 1rem; margin-bottom: 1rem; break-inside: avoid }
.scrolls { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .95rem }
td, th { text-align: left; padding: .4rem .7rem; vertical-align: top; border-bottom: 1px solid var(--line) }
th { color: var(--quiet); font-weight: 600; white-space: nowrap }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
td small { display: block; color: var(--quiet) }
"""

BLIND = "<p><small>The package has no vision encoder: no images were compared.</small></p>"


def render_page(report: dict[str, Any]) -> str:
    """The page for the content of a report.json."""
    title = f"{report['package']}, recipe {report['recipe']}"
    parts = [
        *_header(report, title),
        *_tiles(report),
        *_tasks(report["tasks"]),
        "<h2>Size and quality</h2>",
        f'<div class="plots">{"".join(_comparison(report))}</div>',
        "<h2>Where the error comes from</h2>",
        f'<div class="plots">{"".join(_errors(report))}</div>',
        *([] if report["images"] else [BLIND]),
        *answers_section(report["tasks"]),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}{STYLE}{ANSWERS_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _header(report: dict[str, Any], title: str) -> list[str]:
    answers = [answer for task in report["tasks"] for answer in task["answers"]]
    same = sum(task["same_answers"] for task in report["tasks"])
    passed, limited = report["passed"], report["tolerance"] is not None
    badge = ("passed" if passed else "failed") if limited else "measured"
    if same == len(answers):
        headline = f"All {len(answers)} answers are the checkpoint's, to the letter"
    else:
        headline = f"{same} of {len(answers)} answers are the checkpoint's, to the letter"
    return [
        f'<header><p><span class="verdict {badge}">{badge}</span></p>',
        f"<h1>{headline}</h1>",
        f"<p>{html.escape(title)}, on the engine {html.escape(report['engine'])}, "
        "beside transformers in float32.</p></header>",
    ]


def _tiles(report: dict[str, Any]) -> list[str]:
    reference, own = report["compared"][0], _own_figures(report)
    share = report["size"] / reference["size"]
    tiles = [
        (_size(report["size"]), "size", f"{share:.0%} of the checkpoint"),
        (f"{100 * own['same_top_token']:.2f} %", "same next token", "as the checkpoint prefers"),
        (f"{own['divergence']:.2g}", "divergence in nats", "of next-token distributions"),
    ]
    if own["word_error_rate"] is not None:
        rate, chrf = (own[key] - reference[key] for key in ("word_error_rate", "chrf"))
        tiles += [
            (f"{own['word_error_rate']:.2f} %", "word error rate", _against(rate)),
            (f"{own['chrf']:.1f}", "chrF", _against(chrf)),
        ]
    cells = [f"<div><span>{label}</span><b>{value}</b><small>{note}</small></div>" for value, label, note in tiles]
    return [f'<div class="tiles">{"".join(cells)}</div>']


def _against(change: float) -> str:
    return "like the checkpoint" if abs(change) < 0.005 else f"{change:+.2f} against the checkpoint"


def _own_figures(report: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = report["compared"][report["own_row"]]
    return row


def _tasks(tasks: list[dict[str, Any]]) -> list[str]:
    heads = (
        "same answers", "same next token", "agreeing tokens", "divergence", "perplexity", "word error rate", "chrF",
    )  # fmt: skip
    rows = []
    for task in tasks:
        rates = task["rates"]
        cells = [
            f"{task['same_answers']} of {len(task['answers'])}",
            f"{100 * task['same_top_token']:.1f} %",
            f"{100 * task['agreeing_tokens']:.1f} %",
            f"{task['divergence']:.2g}",
            _beside(f"{task['perplexity']:.2f}", f"{task['reference_perplexity']:.2f}"),
            "" if rates is None else _change(rates, "word_error_rate", " %"),
            "" if rates is None else _change(rates, "chrf", ""),
        ]
        numbers = "".join(f'<td class="number">{cell}' for cell in cells)
        rows.append(f"<tr><td>{html.escape(task['title'])}{numbers}</tr>")
    head = "".join(f'<th class="number">{name}' for name in heads)
    return [
        "<h2>By task</h2>",
        f'<div class="scrolls"><table data-table="tasks"><tr><th>task{head}</tr>{"".join(rows)}</table></div>',
        "<p><small>Below a figure stands the checkpoint's. Next tokens are compared along the true answer, or along "
        "the checkpoint's own where none is known; agreeing tokens are those of its answer before the package's "
        "differs.</small></p>",
    ]


def _change(rates: dict[str, Any], key: str, unit: str) -> str:
    ours, theirs = rates[key], rates[f"reference_{key}"]
    return _beside(f"{ours:.2f}{unit}", f"{theirs:.2f}{unit} ({ours - theirs:+.2f})")


def _beside(ours: str, theirs: str) -> str:
    return f"{ours} <small>{theirs}</small>"


def _comparison(report: dict[str, Any]) -> list[str]:
    rows, own = report["compared"], _own_figures(report)
    worst = min(100 * row["same_top_token"] for row in rows)
    x_axis = Axis("size in MB", 0, 1.12 * max(row["size"] for row in rows) / 1e6)
    # The best there is stands a little below the top edge.
    span = max(1.0, 100 - worst)
    y_axis = Axis("same next token in %", 100 - 1.25 * span, 100 + 0.08 * span)
    points = [Point(_name(row, rows), row["size"] / 1e6, 100 * row["same_top_token"], _kind(row, own)) for row in rows]
    divergences = [_bar(row, report, "divergence", "{:.2g}") for row in rows[1:]]
    sizes = [Bar(_name(row, rows), row["size"], _size(row["size"]), row is not own) for row in rows]
    scatter = point_plot(points, x_axis, y_axis)
    plots = [
        figure("size-quality", "Same next token in %, by size", "up and to the left is better", scatter),
        figure("divergence", "Divergence from the checkpoint, in nats", "shorter is better", bar_chart(divergences)),
        figure("size", "Size", "shorter is better", bar_chart(sizes)),
    ]
    if own["word_error_rate"] is not None:
        rates = [_bar(row, report, "word_error_rate", "{:.2f} %") for row in rows]
        scores = [_bar(row, report, "chrf", "{:.1f}") for row in rows]
        plots += [
            figure("word-error-rate", "Word error rate", "mean over the tasks, shorter is better", bar_chart(rates)),
            figure("chrf", "chrF", "mean over the tasks, longer is better", bar_chart(scores)),
        ]
    return plots


def _kind(row: dict[str, Any], own: dict[str, Any]) -> str:
    if row["recipe"] is None:
        return "hollow"
    return "" if row is own else "pale"


def _name(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """With its engine where packages of several are compared."""
    engines = {each["engine"] for each in rows[1:]}
    return f"{row['name']} ({row['engine']})" if row["engine"] and len(engines) > 1 else row["name"]


def _bar(row: dict[str, Any], report: dict[str, Any], key: str, form: str) -> Bar:
    own = _own_figures(report)
    return Bar(_name(row, report["compared"]), row[key], form.format(row[key]), row is not own)


def _errors(report: dict[str, Any]) -> list[str]:
    plots = []
    for part, title in (("decoder", "decoder"), ("audio", "audio encoder")):
        if errors := report["layers"][part]:
            note = f"{errors[-1]:.2g} behind the last: root mean square of the difference over that of the checkpoint"
            curve = line_plot(errors, "layer", "relative error")
            plots.append(figure(f"layers-{part}", f"Error behind each layer of the {title}", note, curve))
    if report["audio"]:
        bars = [
            Bar(
                f"{row['seconds']:.1f} s, {row['tokens']} tokens", row["relative_error"], f"{row['relative_error']:.2g}"
            )
            for row in report["audio"]
        ]
        plots.append(
            figure("audio", "Audio embeddings by length of the clip", "largest relative error", bar_chart(bars))
        )
    if report["images"]:
        bars = [Bar(row["image"], row["relative_error"], f"{row['relative_error']:.2g}") for row in report["images"]]
        plots.append(figure("images", "Image embeddings by image", "largest relative error", bar_chart(bars)))
    bars = [Bar(row["prompt"], row["relative_error"], f"{row['relative_error']:.2g}") for row in report["logits"]]
    plots.append(figure("logits", "Logits by prompt", "largest relative error at any position", bar_chart(bars)))
    return plots


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
