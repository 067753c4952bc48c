"""The report of a real verification, looked at in a real browser.

The tests need Chromium on PATH; `make test` installs Debian's where it can.
"""

from __future__ import annotations

import html
import re
import subprocess
from pathlib import Path

import pytest
from browser import find_browser
from PIL import Image
from verified import VerifiedPackages

TIMEOUT_SECONDS = 300
PLOTS = {
    "audio", "chrf", "divergence", "layers-audio", "layers-decoder", "logits", "size", "size-quality",
    "word-error-rate",
}  # fmt: skip
COLOURS = {"light": ((255, 255, 255), (0x2F, 0x6F, 0xC4)), "dark": ((0x14, 0x17, 0x1D), (0x6E, 0xA8, 0xF2))}
"""Paper and bars."""

# Run in a frame that holds a copy of the page (a window of Chromium is never narrower than 500): what sticks out of
# its place is written into an attribute of the page around it, which is dumped.
MEASURE = """<script>
const page = document.documentElement, problems = [];
if (page.scrollWidth > page.clientWidth) problems.push(`the page is ${page.scrollWidth} wide`);
for (const figure of document.querySelectorAll("figure")) {
  const outer = figure.getBoundingClientRect();
  for (const part of figure.querySelectorAll("text, circle, span, output, i, figcaption")) {
    const inner = part.getBoundingClientRect();
    if (inner.left < outer.left - 1 || inner.right > outer.right + 1 ||
        inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1)
      problems.push(`${figure.dataset.plot}: ${part.textContent}`);
  }
}
const names = [...document.querySelectorAll("[data-plot=size-quality] svg text:not(.quiet)")];
for (const [index, name] of names.entries())
  for (const other of names.slice(index + 1)) {
    const [a, b] = [name.getBoundingClientRect(), other.getBoundingClientRect()];
    if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)
      problems.push(`${name.textContent} hides ${other.textContent}`);
  }
const drawn = [...document.querySelectorAll("figure")].filter((f) => f.getBoundingClientRect().height > 60);
const found = top.document.documentElement.dataset;
found.problems = problems.join("; ");
found.width = window.innerWidth;
found.drawn = drawn.map((figure) => figure.dataset.plot).join(" ");
found.pictures = document.querySelectorAll("svg").length;
found.verdict = document.querySelector(".verdict")?.textContent;
</script></body>"""


@pytest.fixture(scope="module")
def browser() -> str:
    return find_browser()


@pytest.fixture(scope="module")
def report(verified: VerifiedPackages) -> Path:
    return verified.folders["int4"] / "report.html"


def run_browser(browser: str, profile: Path, page: Path, *options: str) -> str:
    command = (
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
        "--hide-scrollbars", f"--user-data-dir={profile}", *options, page.as_uri(),
    )  # fmt: skip
    outcome = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=TIMEOUT_SECONDS, check=False)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


@pytest.mark.parametrize(("scheme", "width", "height"), [("light", 1200, 2600), ("dark", 420, 3600)])
def test_the_report_is_drawn_in_light_and_in_dark(
    browser: str, report: Path, tmp_path: Path, scheme: str, width: int, height: int
) -> None:
    picture = tmp_path / "report.png"
    # 0 is dark, 1 is light.
    preference = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    options = (preference, f"--screenshot={picture}", f"--window-size={width},{height}")
    run_browser(browser, tmp_path / "profile", report, *options)
    with Image.open(picture) as image:
        assert image.size == (width, height)
        pixels = image.convert("RGB")
        corner, colours = pixels.getpixel((2, 2)), pixels.getcolors(width * height)
    counts = {colour: count for count, colour in colours}
    paper, bars = COLOURS[scheme]
    assert corner == paper
    # Not blank: bars and curves have their colour, and letters have smooth edges.
    assert counts.get(bars, 0) > 2000
    assert len(counts) > 100


def measure(browser: str, folder: Path, page: str, width: int) -> dict[str, str]:
    """What the page looks like in a window of this width."""
    frame = html.escape(page.replace("</body>", MEASURE))
    measured = folder / "measured.html"
    measured.write_text(
        f'<!DOCTYPE html>\n<iframe width="{width}" height="900" style="border: 0" srcdoc="{frame}"></iframe>',
        encoding="utf-8",
    )
    dumped = run_browser(browser, folder / "profile", measured, "--dump-dom", "--window-size=1300,1000")
    # Chromium writes the attributes of the outer page first.
    return dict(re.findall(r' data-([a-z]+)="([^"]*)"', dumped.partition("<head>")[0]))


@pytest.mark.parametrize("width", [1200, 420])
def test_every_plot_is_there_and_nothing_sticks_out(browser: str, report: Path, tmp_path: Path, width: int) -> None:
    found = measure(browser, tmp_path, report.read_text(encoding="utf-8"), width)
    assert found["problems"] == ""
    assert int(found["width"]) == width
    assert set(found["drawn"].split()) == PLOTS
    assert found["pictures"] == "3"
    assert found["verdict"] == "measured"


def test_what_sticks_out_would_be_found(browser: str, tmp_path: Path) -> None:
    wide = '<figure data-plot="wide"><span style="display: block; width: 2000px">words</span></figure>'
    problems = measure(browser, tmp_path, f"<body>{wide}</body>", 1200)["problems"]
    assert "the page is" in problems
    assert "wide: words" in problems


def test_the_drawn_page_names_no_other_place(browser: str, report: Path, tmp_path: Path) -> None:
    dumped = run_browser(browser, tmp_path / "profile", report, "--dump-dom")
    assert "</html>" in dumped
    assert not re.search(r"https?:|\b(src|href)=|url\(|@import|<script", dumped)
