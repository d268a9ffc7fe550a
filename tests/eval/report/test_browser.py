"""The report in real Chromium: no request, no error, text that stays text, slider and tables by mouse and keyboard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image
from support.browser import Browser, chromium
from support.small_evaluations import evaluate, make_run

from eval.evaluation import Evaluation
from eval.progress import Reporter
from eval.registry import EVALUATIONS
from eval.report.page import write
from eval.section import Picture, Section, Table
from wellread.plots.curves import Point, step_curves
from wellread.results import Result
from wellread.run import RunDirectory

HOSTILE = (
    "<script>document.title='run'</script>", "</script><script>document.title='run'</script>", "{{7*7}}",
    "<img src=x onerror=document.title='run'>", "__proto__", "<!--<script>", "a'\"&b",
)  # fmt: skip
DRAWN = "document.documentElement.dataset.drawn !== undefined"


class Hostile(Evaluation):
    """Shows hostile text everywhere."""

    name: ClassVar[str] = "hostile"
    summary: ClassVar[str] = "hostile text"

    def results(self, reporter: Reporter) -> Iterator[Result]:
        yield from ()

    @classmethod
    def section(cls, run: RunDirectory, results: Sequence[Result]) -> Section | None:
        series = {name: [Point(0, i), Point(8, i + 1.0, i, i + 2.0)] for i, name in enumerate(HOSTILE)}
        figure = step_curves(series, HOSTILE[0])
        rows: list[tuple[object, ...]] = [(name, i, None if i == 2 else 10.5 - i) for i, name in enumerate(HOSTILE)]
        return Section(
            heading=HOSTILE[0],
            n=HOSTILE[1],
            help=HOSTILE[3],
            template="<ul>{% for text in texts %}<li>{{ text }}</li>{% endfor %}</ul>",
            values={"texts": HOSTILE},
            pictures=[Picture(HOSTILE[0], figure, HOSTILE[1], HOSTILE[3])],
            tables=[Table(HOSTILE[0], ("text", HOSTILE[0], "down"), rows)],
        )


def hostile_tokenizer(folder: Path) -> None:
    """A tokenizer of words, with hostile words among those of the samples."""
    from tokenizers import Tokenizer, models

    words = [f"word{i}" for i in range(64)]
    words[5 : 5 + len(HOSTILE)] = HOSTILE
    folder.mkdir()
    Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="word0")).save(
        str(folder / "tokenizer.json")
    )


@pytest.fixture
def page(tmp_path: Path, scored: list[Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The report of a run with hostile names and texts, in a folder with a plain name."""
    monkeypatch.setitem(EVALUATIONS, "hostile", f"{__name__}:Hostile")
    run = make_run(tmp_path / HOSTILE[0].replace("/", ""), model=HOSTILE[0])
    hostile_tokenizer(run.corpus / "tokenizer")
    evaluate(run, bootstrap=100, progress=False)
    path = tmp_path / "index.html"
    path.write_text(write(run).read_text())
    return path


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with chromium(tmp_path / "profile") as started:
        started.show(1400)
        yield started


def texts(browser: Browser, selector: str) -> list[str]:
    return list(browser.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.textContent)"))


@pytest.mark.browser
@pytest.mark.slow
def test_the_report_in_a_browser(page: Path, browser: Browser, tmp_path: Path) -> None:
    browser.open(page.as_uri())
    browser.wait(DRAWN)
    _text_stays_text(browser)
    _the_slider(browser)
    _sorting(browser)
    _narrow_and_dark(page, browser, tmp_path)
    _printed(page, browser)
    assert browser.requests == []
    assert browser.errors == []
    _without_script(page, browser)


def _text_stays_text(browser: Browser) -> None:
    assert browser.run("document.title").startswith("<script>document.title='run'")
    assert browser.run("document.querySelectorAll('script').length") == 3
    assert browser.run("document.querySelectorAll('img').length") == 0  # static pictures are only for no script
    assert browser.run("({}).polluted === undefined && Object.keys(Object.prototype).length === 0")
    assert set(HOSTILE) <= set(texts(browser, "#hostile ~ ul li"))
    assert set(HOSTILE) <= set(texts(browser, "#hostile ~ .scroll tbody th"))
    assert set(HOSTILE) <= set(texts(browser, "#hostile ~ .plots svg text"))
    browser.hover("#hostile ~ .plots svg path[aria-roledescription=point]")
    browser.wait("document.querySelector('#vg-tooltip-element.visible') !== null")
    assert HOSTILE[0] in texts(browser, "#vg-tooltip-element td.value")


def _the_slider(browser: Browser) -> None:
    step = "document.querySelector('.slider output').textContent"
    assert browser.run(step) == "step 4"
    browser.click(".slider input", x=0.5)
    assert browser.run(step) == "step 2"
    read = texts(browser, ".texts .text")
    assert read[0] == f"{HOSTILE[0]} {HOSTILE[1]} {HOSTILE[2]} {HOSTILE[4]}"  # tokens 5, 6, 7, 9
    assert "4" in texts(browser, ".reading dd")
    browser.press("ArrowLeft")
    assert (browser.run(step), texts(browser, ".texts .text")) == ("step 0", [])
    browser.press("ArrowRight")
    assert browser.run(step) == "step 2"
    browser.click(".slider button:last-of-type")
    assert browser.run(step) == "step 4"
    browser.click(".slider button:first-of-type")
    assert browser.run(step) == "step 2"


def _sorting(browser: Browser) -> None:
    column = "#hostile ~ .scroll tbody td:last-child"
    head = "#hostile ~ .scroll thead th:last-child"
    assert texts(browser, column) == ["10.5", "9.5", "–", "7.5", "6.5", "5.5", "4.5"]
    browser.click(f"{head} button")
    assert texts(browser, column) == ["4.5", "5.5", "6.5", "7.5", "9.5", "10.5", "–"]
    assert browser.run(f"document.querySelector('{head}').ariaSort") == "ascending"
    browser.press("Enter")  # the button has the focus
    assert texts(browser, column) == ["10.5", "9.5", "7.5", "6.5", "5.5", "4.5", "–"]
    assert browser.run(f"document.querySelector('{head}').ariaSort") == "descending"
    browser.press("Space")
    assert texts(browser, column)[0] == "4.5"


def _narrow_and_dark(page: Path, browser: Browser, folder: Path) -> None:
    ink = "getComputedStyle(document.querySelector('svg .role-axis-label text')).fill"
    assert browser.run(ink) == "rgb(34, 34, 34)"
    for width in (1400, 400):
        for dark in (False, True):
            browser.show(width, dark=dark)
            browser.open(page.as_uri())
            browser.wait(DRAWN)
            assert browser.run("document.documentElement.scrollWidth") <= width
            for part in ("caption span", ".role-legend"):  # also the ends of long captions and names can be seen
                ends = f"[...document.querySelectorAll('{part}')].map((one) => one.getBoundingClientRect().right)"
                assert max(browser.run(ends)) <= width
            _picture(browser, folder / f"{width}-{'dark' if dark else 'light'}.png", width, dark=dark)
    assert browser.run(ink) == "rgb(230, 233, 236)"
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"


def _picture(browser: Browser, file: Path, width: int, *, dark: bool) -> None:
    """Save the whole page; it has its background, its ink, and the colors of figures."""
    browser.screenshot(file)
    picture = Image.open(file).convert("RGB")
    counted = picture.getcolors(picture.width * picture.height)
    counts, colors = np.array([count for count, _ in counted]), np.array([color for _, color in counted])
    assert (picture.width, picture.height > 2000) == (width, True)
    assert tuple(colors[counts.argmax()].tolist()) == ((20, 23, 26) if dark else (255, 255, 255))
    assert counts.size > 200
    ink = colors.max(axis=1) > 200 if dark else colors.max(axis=1) < 60
    assert 0.002 < counts[ink].sum() / counts.sum() < 0.2
    line = np.array((86, 180, 233) if dark else (0, 114, 178))
    assert counts[np.abs(colors - line).max(axis=1) < 12].sum() > 200


def _printed(page: Path, browser: Browser) -> None:
    """On paper: dark ink on white, whatever the screen has; no control that needs a script; nothing is cut off."""
    width = 700  # of A4 with margins, in pixels
    browser.show(1400, dark=True)
    browser.open(page.as_uri())
    browser.wait(DRAWN)
    browser.show(width, dark=True, media="print")
    style = "getComputedStyle(document.querySelector({}), {})"
    assert browser.run(style.format("'body'", "null") + ".backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run(style.format("'svg .role-axis-label text'", "null") + ".fill") == "rgb(34, 34, 34)"
    assert browser.run(style.format("'thead button'", "'::after'") + ".content") == "none"
    visible = "[...document.querySelectorAll('nav, .slider button, .slider input')].filter((one) => one.offsetParent)"
    assert browser.run(f"{visible}.length") == 0
    assert texts(browser, ".slider output") == ["step 4"]
    assert browser.run("document.documentElement.scrollWidth") <= width
    for part in ("table", "svg", ".texts li"):
        ends = f"[...document.querySelectorAll('{part}')].map((one) => one.getBoundingClientRect().right)"
        assert max(browser.run(ends)) <= width
    document = browser.pdf()
    assert document.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", document)) > 2


def _without_script(page: Path, browser: Browser) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.call("Page.navigate", url=page.as_uri())
    loaded = "[...document.images].filter((image) => image.complete && image.naturalWidth > 0).length"
    browser.wait(f"{loaded} === 7")
    assert texts(browser, "svg") == []
    assert browser.requests == []
