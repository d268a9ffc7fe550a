"""`read --sql`: each answer is computed a second time from corpus, order or source."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
from support.reading import Ask

from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.record.reader import Record
from wellread.run import RunDirectory


def test_sql_joins_record_and_samples(ask: Ask, corpus: Corpus, tiny_run: RunDirectory, tmp_path: Path) -> None:
    query = "select category, count(*) n from record join samples using (sample_id) group by category order by category"
    lines = [line.split("\t") for line in ask("--sql", query).splitlines()]
    categories = corpus.samples()["category"].to_pylist()
    expected = Counter(categories[i] for i in Record.open(tiny_run.record).sample_ids())
    assert lines == [["category", "n"], *([name, str(n)] for name, n in sorted(expected.items()))]
    ask("--sql", "select digest from record limit 1", "--csv", tmp_path / "q.csv")
    digest = corpus.digest(int(Record.open(tiny_run.record).sample_ids()[0])).hex()
    assert (tmp_path / "q.csv").read_text() == f"digest\n{digest}\n"
    with pytest.raises(UserError, match=r"--sql: .*tables are record, checkpoints and samples"):
        ask("--sql", "select * from recrod")


def test_sql_without_duckdb_names_the_package_to_install(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(UserError, match="pip install 'duckdb"):
        ask("--sql", "select 1")
