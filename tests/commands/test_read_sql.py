"""`read --sql`: each answer is computed a second time from corpus, order or source."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
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
    with pytest.raises(UserError, match=r"--sql: .*tables are record, losses, checkpoints and samples"):
        ask("--sql", "select * from recrod")


def test_losses_are_the_readings_of_each_sample(ask: Ask, copied_run: RunDirectory) -> None:
    """Batch 1 is skipped, so it is not a reading; batch 2 reads again what batch 0 has read."""
    head = json.loads((copied_run.record / "head.json").read_text())
    path = copied_run.record / head["parts"][0]["name"]
    table = pyarrow.parquet.read_table(path)
    batches, ids = table["batch_id"].to_numpy(), table["sample_id"].to_numpy().copy()
    ids[32:48] = ids[:16]
    for name, values in (("sample_id", ids), ("skipped", batches == 1)):
        table = table.set_column(table.column_names.index(name), name, pyarrow.array(values))
    pyarrow.parquet.write_table(table, path)
    query = f"select * from losses where sample_id = {ids[0]} or batch_id = 1 order by reading"
    rows = [line.split("\t") for line in ask("--sql", query, of=copied_run.path).splitlines()]
    losses = table["loss"].to_pylist()
    assert rows[0] == ["sample_id", "reading", "batch_id", "loss"]
    assert [row[:3] for row in rows[1:]] == [[str(ids[0]), "1", "0"], [str(ids[0]), "2", "2"]]
    assert [float(row[3]) for row in rows[1:]] == pytest.approx([losses[0], losses[32]])


def test_losses_of_a_record_without_the_column_skipped(ask: Ask, copied_run: RunDirectory) -> None:
    for path in copied_run.record.glob("part-*.parquet"):
        pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).drop_columns(["skipped"]), path)
    assert ask("--sql", "select count(*), max(reading) from losses", of=copied_run.path).split() == [
        "count_star()",
        "max(reading)",
        "192",
        "1",
    ]


def test_sql_without_duckdb_names_the_package_to_install(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(UserError, match="pip install 'duckdb"):
        ask("--sql", "select 1")


@pytest.mark.parametrize("query", ["", " ", ";", "-- a comment"])
def test_sql_without_a_statement(ask: Ask, query: str) -> None:
    with pytest.raises(UserError, match="--sql: contains no statement; write a query"):
        ask("--sql", query)


def test_a_folder_in_place_of_a_table(ask: Ask, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}: is a folder; name a file in it"):
        ask("--sql", "select 1", "--csv", tmp_path)
