"""The answers of a verification report, the most damaged ones first, with the words that differ highlighted."""

from __future__ import annotations

import html
import re
from difflib import SequenceMatcher
from typing import Any

WORST_SHOWN = 12
_WORD = re.compile(r"\n|\S+")

ANSWERS_STYLE = """
.answers td { min-width: 11rem } .answers td.number { min-width: 0 }
@media (max-width: 44rem) {
  .answers, .answers tbody, .answers tr, .answers td { display: block; width: 100% }
  .answers tr { background: var(--card); border-radius: .6rem; padding: .5rem .3rem; margin-bottom: .8rem }
  .answers tr:has(th) { display: none } .answers td { border: 0 } .answers td.number { text-align: left }
  .answers td::before { content: attr(data-label); display: block; color: var(--quiet); font-size: .8rem } }
mark { background: var(--bad-paper); color: var(--bad); border-radius: .2rem; padding: 0 .15rem }
del { color: var(--bad); opacity: .8 } .none { color: var(--quiet) }
details { margin-top: 1rem } summary { cursor: pointer; color: var(--accent) }
"""


def answers_section(tasks: list[dict[str, Any]]) -> list[str]:
    """A table of the most damaged answers, and the others folded away."""
    rows = [(task["title"], answer) for task in tasks for answer in task["answers"]]
    rows.sort(key=lambda row: (row[1]["answer"] == row[1]["reference_answer"], -row[1]["divergence"]))
    changed = sum(answer["answer"] != answer["reference_answer"] for _, answer in rows)
    parts = [
        "<h2>The most damaged answers</h2>",
        f"<p>{changed} of {len(rows)} answers changed. <mark>Marked</mark> words are not in what was said, "
        "<del>struck</del> ones are missing; without a true answer, the checkpoint's is the measure.</p>",
        _table(rows[:WORST_SHOWN]),
    ]
    if rows[WORST_SHOWN:]:
        others = rows[WORST_SHOWN:]
        parts.append(f"<details><summary>{len(others)} more answers</summary>{_table(others)}</details>")
    return parts


def highlight(text: str, measure: str) -> str:
    """HTML of a text whose words that the measure lacks are marked, and whose missing words are struck."""
    ours, theirs = (_WORD.findall(given) for given in (text, measure))
    parts = []
    for kind, start, end, other_start, other_end in SequenceMatcher(None, theirs, ours, autojunk=False).get_opcodes():
        missing, found = html.escape(" ".join(theirs[start:end])), html.escape(" ".join(ours[other_start:other_end]))
        if kind == "equal":
            parts.append(found)
        else:
            parts += [f"<del>{missing}</del>"] if missing else []
            parts += [f"<mark>{found}</mark>"] if found else []
    return " ".join(parts).replace("\n", "<br>")


def _table(rows: list[tuple[str, dict[str, Any]]]) -> str:
    heads = '<th>question<th>said<th>checkpoint<th>package<th class="number">divergence<th class="number">perplexity'
    body = "\n".join(_row(title, answer) for title, answer in rows)
    return f'<div class="scrolls"><table class="answers" data-table="answers"><tr>{heads}</tr>{body}</table></div>'


def _row(title: str, answer: dict[str, Any]) -> str:
    text = answer["text"]
    measure = answer["reference_answer"] if text is None else text
    said = '<span class="none">no true answer</span>' if text is None else html.escape(text).replace("\n", "<br>")
    cells = {
        "question": f"{html.escape(answer['name'])}<small>{html.escape(title)}</small>",
        "said": said,
        "checkpoint": highlight(answer["reference_answer"], measure),
        "package": highlight(answer["answer"], measure),
    }
    numbers = {
        "divergence": f"{answer['divergence']:.2g}",
        "perplexity": f"{answer['perplexity']:.2f} <small>{answer['reference_perplexity']:.2f}</small>",
    }
    row = [f'<td data-label="{label}">{cell}' for label, cell in cells.items()]
    row += [f'<td class="number" data-label="{label}">{cell}' for label, cell in numbers.items()]
    return f"<tr>{''.join(row)}</tr>"
