"""The report of a run: pictures, content, escaping, and how a browser shows it."""

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from support.programs import missing
from support.small_evaluations import evaluate, make_run
from support.waiting import PATIENCE

from eval.report.page import write

EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Tags, texts and addresses of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(" ".join(data.split()))


def test_the_report_shows_the_run(tmp_path: Path, scored: list[Any]) -> None:
    run = make_run(tmp_path / "run")
    evaluate(run, bootstrap=100, progress=False)
    path = write(run)
    assert path == run.report / "index.html"
    page = Page(path.read_text())
    assert page.tags.count("img") == 6
    assert sum(name == "alt" and len(value) > 20 for name, value in page.attributes) == 6
    for text in ("4 of ", "8 of 8 trainable, 8 readings", "0 … 1", "1.000 [1.000, 1.000]", "1.844", "3.600"):
        assert any(text in page_text for page_text in page.texts), text
    finding = next(text for text in page.texts if text.startswith("At step 4, a sample that the model has read"))
    assert "with probability 1.000 [1.000, 1.000]" in finding
    assert any("not reported, because it needs 100 sealed samples" in text for text in page.texts)
    assert any(text.startswith("wellread membership ") for text in page.texts)


def test_the_report_is_self_contained(tmp_path: Path, scored: list[Any]) -> None:
    run = make_run(tmp_path / "run")
    evaluate(run, bootstrap=100, progress=False)
    page = Page(write(run).read_text())
    assert {"script", "link", "iframe", "object", "embed"}.isdisjoint(page.tags)
    addresses = [value for name, value in page.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert all(address.startswith(("data:image/svg+xml;base64,", "#")) for address in addresses)
    assert "url(" not in write(run).read_text()


def test_everything_is_escaped(tmp_path: Path, scored: list[Any]) -> None:
    run = make_run(tmp_path / '<script>alert(1)"><img src=x onerror=alert(1)>', model=EVIL)
    evaluate(run, bootstrap=100, progress=False)
    html = write(run).read_text()
    page = Page(html)
    assert "script" not in page.tags
    assert page.tags.count("img") == 6
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2  # name of the model, in the lead and in the summary
    assert "<title>&lt;script&gt;alert(1)&#34;&gt;&lt;img" in html


def test_the_report_of_a_run_without_evaluations(tmp_path: Path) -> None:
    page = Page(write(make_run(tmp_path / "run", sealed=0)).read_text())
    assert "Not evaluated yet. This evaluates it and writes this page again:" in page.texts
    assert page.tags.count("img") == 2


def test_train_loss_is_weighted_by_targets(tmp_path: Path) -> None:
    from eval.report.record_summary import RecordSummary
    from wellread.record.reader import Record

    reading = RecordSummary.of(Record.open(make_run(tmp_path / "run").record), 8)
    assert reading.losses[:2].tolist() == [(4.0 + 3 * 2.0) / 4, (3.0 + 3 * 1.75) / 4]
    assert (reading.samples, reading.readings) == (8, 8)


@pytest.mark.browser
def test_a_browser_shows_the_report_and_runs_no_script(tmp_path: Path, scored: list[Any]) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        missing("Chromium is not installed: apt-get install chromium")
    run = make_run(tmp_path / "<script>document.title='run'", model=EVIL)
    evaluate(run, bootstrap=100, progress=False)
    page = tmp_path / "index.html"
    page.write_text(write(run).read_text())
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    process = subprocess.run(
        [browser, *options, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=PATIENCE
    )
    rendered = Page(process.stdout)
    assert "<script>document.title='run' · wellread" in rendered.texts
    assert rendered.tags.count("img") == 6
    assert "script" not in rendered.tags
