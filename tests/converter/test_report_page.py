from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from verified import VerifiedPackages

from cabochon_convert.report_answers import highlight
from cabochon_convert.report_page import render_page
from cabochon_convert.report_plots import Axis, Bar, Point, bar_chart, line_plot, point_plot, ticks

HOSTILE = "<script>alert(1)</script>\"' onload=x"


class Page(HTMLParser):
    """Finds the text of a page, its plots, and whether it asks for anything from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.plots: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self.plots += [value or "" for name, value in attrs if name == "data-plot"]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture
def content(verified: VerifiedPackages) -> dict[str, Any]:
    """The content of a real report.json, to be changed."""
    report: dict[str, Any] = json.loads((verified.folders["int4"] / "report.json").read_text(encoding="utf-8"))
    return report


def replace_texts(value: Any, text: str) -> Any:
    """The same structure with another text everywhere."""
    if isinstance(value, dict):
        return {key: replace_texts(part, text) for key, part in value.items()}
    if isinstance(value, list):
        return [replace_texts(part, text) for part in value]
    return text if isinstance(value, str) else value


def test_the_page_is_what_a_verification_wrote(verified: VerifiedPackages, content: dict[str, Any]) -> None:
    assert render_page(content) == (verified.folders["int4"] / "report.html").read_text(encoding="utf-8")


def test_the_page_has_a_plot_of_everything_and_asks_for_nothing_from_elsewhere(content: dict[str, Any]) -> None:
    text = render_page(content)
    page = Page(text)
    assert sorted(page.plots) == [
        "audio", "chrf", "divergence", "layers-audio", "layers-decoder", "logits", "size", "size-quality",
        "word-error-rate",
    ]  # fmt: skip
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not {"src", "href"} & set(page.attributes)
    assert not re.search(r"https?:|//\w|url\(|@import", text)


def test_what_was_said_cannot_break_the_page(content: dict[str, Any]) -> None:
    page = Page(render_page(replace_texts(content, HOSTILE)))
    assert "script" not in page.tags
    assert "onload" not in page.attributes
    assert any("alert(1)" in words for words in page.words)


def forget_true_answers(content: dict[str, Any]) -> None:
    for task in content["tasks"]:
        task["rates"] = None
        for answer in task["answers"]:
            answer["text"] = None
    for row in content["compared"]:
        row["word_error_rate"] = row["chrf"] = None


def forget_sounds(content: dict[str, Any]) -> None:
    content["audio"], content["layers"]["audio"] = [], []


def forget_other_packages(content: dict[str, Any]) -> None:
    content["compared"] = content["compared"][:2]


def have_no_error(content: dict[str, Any]) -> None:
    content["layers"] = {"audio": [0.0], "decoder": [0.0] * 35}
    for row in content["compared"]:
        row["divergence"], row["same_top_token"] = 0.0, 1.0


@pytest.mark.parametrize("change", [forget_true_answers, forget_sounds, forget_other_packages, have_no_error])
def test_what_was_not_measured_is_left_out(content: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> None:
    change(content)
    text = render_page(content)
    assert not re.search(r"\b(None|nan|inf)\b", text)
    assert "size-quality" in Page(text).plots


def test_words_that_differ_are_marked_and_missing_ones_struck() -> None:
    assert highlight("the big  cat sat", "the cat sat down") == "the <mark>big</mark> cat sat <del>down</del>"
    assert highlight("a & b", "a & b") == "a &amp; b"
    assert highlight("one\nGerman: zwei", "one\nGerman: eins") == ("one <br> German: <del>eins</del> <mark>zwei</mark>")
    assert highlight("", "all of it") == "<del>all of it</del>"


@given(st.text(), st.text())
def test_no_text_becomes_markup(text: str, measure: str) -> None:
    tags = Page(highlight(text, measure)).tags
    assert set(tags) <= {"mark", "del", "br"}


@given(st.floats(-1e6, 1e6), st.floats(1e-9, 1e9))
def test_ticks_are_few_and_on_the_scale(low: float, span: float) -> None:
    axis = Axis("x", low, low + max(span, abs(low) * 1e-9))
    marks = ticks(axis)
    assert len(marks) <= 6
    slack = 1e-6 * (axis.high - axis.low)
    assert all(axis.low - slack <= mark <= axis.high + slack for mark in marks)


def test_names_of_points_that_lie_together_do_not_hide_each_other() -> None:
    points = [Point(f"package {index}", 5.0, 100.0) for index in range(4)]
    drawn = point_plot(points, Axis("x", 0, 10), Axis("y", 90, 101))
    places = re.findall(r'<text x="([\d.]+)" y="([\d.]+)">package', drawn)
    assert len(set(places)) == 4


def test_bars_are_as_long_as_their_values() -> None:
    drawn = bar_chart([Bar("a", 2.0, "2"), Bar("b", 1.0, "1", is_pale=True), Bar("c", -1e-17, "0")])
    assert re.findall(r"width:([\d.]+)%", drawn) == ["100.0", "50.0", "0.0"]


@pytest.mark.parametrize("values", [[0.0], [1e-7] * 35, [0.1, 0.2]])
def test_a_curve_has_a_dot_for_every_layer(values: list[float]) -> None:
    assert line_plot(values, "layer", "error").count("<circle") == len(values)


def test_packages_of_several_engines_are_told_apart(content: dict[str, Any]) -> None:
    other = content["compared"][2]
    words = Page(render_page(content)).words
    assert not any("onnx)" in word for word in words)
    other["engine"] = "litert"
    words = Page(render_page(content)).words
    assert f"{other['name']} (litert)" in words
    assert f"{content['compared'][1]['name']} (onnx)" in words
    assert "checkpoint" in words
