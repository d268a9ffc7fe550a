"""The report of a run: content, escaping, several runs, serving; test_browser.py has how a browser shows it."""

import http.client
import json
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.small_evaluations import evaluate, make_run

from eval.__main__ import main
from eval.report.facts import Facts
from eval.report.page import write
from eval.report.script import as_json, for_page, palette, variable
from eval.report.sections.reading import section as reading
from eval.report.serve import server_of
from eval.saturation.outputs import WhatWasRead, inputs_of, measure_read
from wellread.corpus.read import Corpus
from wellread.data import sample_metrics, text_metrics
from wellread.errors import UserError
from wellread.plots.curves import Point, step_curves
from wellread.plots.style import BLUE
from wellread.results import Result

EVIL = "<script>alert(1)</script>"
ABOUT: dict[str, Any] = {
    "run": "r",
    "model": "m",
    "task": "t",
    "tokens": 1,
    "n": 5,
    "group": "g",
    "metric": "words",
    "value": 1.0,
}


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
    assert {"link", "iframe", "object", "embed", "base", "form"}.isdisjoint(page.tags)
    assert page.tags.count("script") == 3  # data, the bundle, the page's own
    addresses = [value for name, value in page.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert all(address.startswith(("data:image/svg+xml;base64,", "#")) for address in addresses)
    assert {address[1:] for address in addresses if address[0] == "#"} <= {v for n, v in page.attributes if n == "id"}
    policy = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:"
    assert ("content", policy) in page.attributes


def test_everything_is_escaped(tmp_path: Path, scored: list[Any]) -> None:
    run = make_run(tmp_path / '<script>alert(1)"><img src=x onerror=alert(1)>', model=EVIL)
    evaluate(run, bootstrap=100, progress=False)
    html = write(run).read_text()
    page = Page(html)
    assert page.tags.count("script") == 3
    assert page.tags.count("img") == 6
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2  # name of the model, in the lead and in the summary
    assert "<title>&lt;script&gt;alert(1)&#34;&gt;&lt;img" in html


def test_data_cannot_end_its_script() -> None:
    data = {"text": "</script><!--<script>", "__proto__": [1.5, None]}
    text = as_json(data)
    assert "<" not in text
    assert json.loads(text) == data
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_json(float("nan"))


def test_colors_become_variables_except_in_data() -> None:
    spec = for_page(step_curves({BLUE: [Point(0, 1.0), Point(1, 2.0)]}, "x"), "alt")
    assert spec["layer"][0]["encoding"]["color"]["scale"] == {"domain": [BLUE], "range": ["var(--plot-0072b2)"]}
    assert next(iter(spec["datasets"].values()))[0]["series"] == BLUE
    assert (spec["width"], spec["description"]) == ("container", "alt")
    assert f"{variable(BLUE)}: #0072b2;" in palette(dark=False)
    assert f"{variable(BLUE)}: #56b4e9;" in palette(dark=True)


def test_what_was_read_between_checkpoints(tmp_path: Path) -> None:
    section = reading(Facts.of(make_run(tmp_path / "run")), [])
    assert section is not None
    assert section.tables[0].heads[:5] == ("step", "batches", "readings", "samples", "new samples")
    losses = (4.0 + 3 * 2.0 + 3.0 + 3 * 1.75) / 8, (2.0 + 3 * 1.5 + 1.0 + 3 * 1.25) / 8
    assert section.tables[0].rows == [
        [0, 0, 0, 0, 0, 0, 0, None, None],
        [2, 2, 4, 4, 4, 16, 8, pytest.approx(losses[0]), 4.0],
        [4, 2, 4, 4, 4, 16, 8, pytest.approx(losses[1]), 4.0],
    ]
    assert section.data[0]["texts"] == []
    assert section.data[1]["texts"][1] == {"about": "sample 1, batch 0, loss 2.00", "text": "token ids 6 6 8 9"}
    assert [text["about"].split(",")[0] for text in section.data[2]["texts"]] == [f"sample {i}" for i in (4, 5, 6, 7)]


def test_what_was_read_agrees_with_saturation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch 2 was skipped, and metrics of texts were measured afterwards: both sections have equal numbers."""
    run = make_run(tmp_path / "run", skipped=(2,))

    def measured(corpus: Corpus, ids: np.ndarray, show: Any) -> np.ndarray:
        return np.tile(ids[:, None] ** 2, (1, len(text_metrics.NAMES))).astype(np.float32)

    monkeypatch.setattr(sample_metrics, "measure", measured)
    measure_read(run)
    facts = Facts.of(run)
    section = reading(facts, [])
    assert section is not None
    assert section.n.startswith("6 readings in 3 intervals, without 1 skipped batch; ")
    rows = [dict(zip(section.tables[0].heads, row, strict=True)) for row in section.tables[0].rows]
    assert [rows[2][name] for name in ("batches", "readings", "samples", "new samples", "tokens", "targets")] == [
        1, 2, 2, 2, 8, 4,
    ]  # fmt: skip
    assert rows[2]["mean loss"] == (1 + 3 * 1.25) / 4
    assert [row["words"] for row in rows] == [None, (0 + 1 + 4 + 9) / 4, (36 + 49) / 2]
    of_saturation = inputs_of(WhatWasRead.of(run), [Result(**ABOUT, step=step) for step in (0, 2, 4)])
    for name, head in {"loss": "mean loss", **{name: name for name in text_metrics.NAMES}}.items():
        assert [row[head] for row in rows[1:]] == of_saturation[name].interval[1:].tolist()
    assert [text["about"].split(",")[0] for text in section.data[2]["texts"]] == ["sample 6", "sample 7"]
    assert section.data[2]["facts"][-1] == (text_metrics.NAMES[-1], "42.5")
    assert (facts.read.readings, facts.read.samples) == (6, 6)


def test_several_runs_on_one_page(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run", batches=2)
    assert main(["report", str(first.path), str(second.path)]) == 0
    page = Page((first.report / "together.html").read_text())
    identifiers = [value for name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))
    assert {"together", "run-1-curves", "run-2-curves", "run-2-membership"} <= set(identifiers)
    assert {str(first.path), str(second.path)} <= set(page.texts)  # two runs of one name
    assert page.tags.count("img") == 6
    assert any("differ in nothing but their seed" in text for text in page.texts)
    with pytest.raises(UserError, match="a run is named twice"):
        write(first, first)
    with pytest.raises(UserError, match="8 runs; at most 7 fit on one page"):
        write(*[make_run(tmp_path / f"run-{i}") for i in range(8)])


def test_the_page_is_served_on_loopback_only(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("the page")
    with server_of(tmp_path / "index.html") as server:
        threading.Thread(target=server.serve_forever).start()
        host, port = server.server_address[:2]
        answers = {}
        for path, name in (("/", f"{host}:{port}"), ("/index.html", f"{host}:{port}"), ("/", "elsewhere.example")):
            connection = http.client.HTTPConnection(str(host), port)
            connection.request("GET", path, headers={"Host": name})
            answer = connection.getresponse()
            answers[path, name] = (answer.status, answer.read())
            connection.close()
        server.shutdown()
    assert host == "127.0.0.1"
    assert list(answers.values()) == [(200, b"the page"), (404, b"not here\n"), (404, b"not here\n")]


def test_a_wrong_port(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--port 70000: must be between 0 and 65535"):
        main(["report", str(tmp_path), "--serve", "--port", "70000"])
    with pytest.raises(UserError, match="--port: only with --serve"):
        main(["report", str(tmp_path), "--port", "7000"])


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
