"""Text metrics of samples (`--metrics`), per batch and per checkpoint, in each question of `read`."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from numpy.typing import NDArray
from support.reading import BATCH, Ask, value

from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.record.reader import Record
from wellread.run import RunDirectory


def add_metrics(run: RunDirectory, rows: int | None = None) -> NDArray[np.float32]:
    """Give the corpus of a run text metrics, and tables in several parts that end in different places."""
    corpus = Corpus.open(run.corpus)
    grades = np.random.default_rng(0).normal(6, 2, rows or corpus.n).astype(np.float32)
    table = pyarrow.table({"sample_id": np.arange(len(grades)), "grade": grades, "words": np.arange(len(grades)) % 7})
    pyarrow.parquet.write_table(table, run.corpus / "metrics.parquet", row_group_size=100)
    samples = run.corpus / "samples.parquet"
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(samples), samples, row_group_size=37)
    meta = json.loads((run.corpus / "corpus.json").read_text())
    for name in ("metrics.parquet", "samples.parquet"):
        meta["sizes"][name] = (run.corpus / name).stat().st_size
    (run.corpus / "corpus.json").write_text(json.dumps(meta))
    return grades


def test_csv_has_the_mean_of_each_batch(copied_run: RunDirectory, ask: Ask) -> None:
    grades = add_metrics(copied_run)
    ids = Record.open(copied_run.record).sample_ids().reshape(-1, BATCH)
    lines = list(csv.DictReader(io.StringIO(ask("--csv", of=copied_run.path))))
    assert [float(line["mean_grade"]) for line in lines] == pytest.approx(grades[ids].mean(axis=1), abs=1e-5)
    assert [float(line["mean_words"]) for line in lines] == pytest.approx((ids % 7).mean(axis=1), abs=1e-5)


def test_a_checkpoint_has_the_mean_of_all_and_since_the_previous_checkpoint(copied_run: RunDirectory, ask: Ask) -> None:
    grades = add_metrics(copied_run)
    ids = Record.open(copied_run.record).sample_ids((0, 8))
    everything, recent = value(ask("--checkpoint", 8, of=copied_run.path), "grade").split()
    assert everything == f"{grades[ids].mean(dtype=np.float64):.4f}"
    assert recent == f"{grades[ids[4 * BATCH :]].mean(dtype=np.float64):.4f}"


def test_sql_groups_metrics_by_batch_and_by_checkpoint(copied_run: RunDirectory, ask: Ask) -> None:
    grades = add_metrics(copied_run)
    ids = Record.open(copied_run.record).sample_ids().reshape(-1, BATCH)
    for table in ("samples", "metrics"):
        query = f"select avg(grade) from record join {table} using (sample_id) group by batch_id order by batch_id"
        printed = ask("--sql", query, of=copied_run.path).splitlines()[1:]
        assert [float(line) for line in printed] == pytest.approx(grades[ids].mean(axis=1), abs=1e-5)
    query = (
        "select c.step, avg(grade) from checkpoints c join record r on r.batch_id >= first_batch and "
        "r.batch_id < stop_batch join samples using (sample_id) group by c.step order by c.step"
    )
    printed = [line.split("\t") for line in ask("--sql", query, of=copied_run.path).splitlines()[1:]]
    assert [int(step) for step, _ in printed] == [4, 8, 12]
    expected = [grades[ids[i : i + 4]].mean() for i in (0, 4, 8)]
    assert [float(mean) for _, mean in printed] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UserError, match=r"tables are record, losses, checkpoints, samples and metrics"):
        ask("--sql", "select * from recrod", of=copied_run.path)


def test_jsonl_has_the_metrics_of_each_sample(copied_run: RunDirectory, ask: Ask) -> None:
    grades = add_metrics(copied_run)
    for line in ask("--batch", "0:2", "--jsonl", "-", of=copied_run.path).splitlines():
        sample = json.loads(line)
        assert sample["grade"] == pytest.approx(float(grades[sample["sample_id"]]))


def test_metrics_of_other_samples_are_refused(copied_run: RunDirectory, ask: Ask) -> None:
    add_metrics(copied_run, rows=10)
    with pytest.raises(UserError, match=r"metrics\.parquet: 10 rows for [\d,]+ samples; delete this corpus"):
        ask("--csv", of=copied_run.path)
