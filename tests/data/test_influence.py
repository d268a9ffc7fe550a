"""``--influence``: scores of another program as a metric, for orders and reports."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.small_evaluations import make_run

from eval.report.facts import Facts
from eval.report.sections.reading import section as reading
from finetune.prepare import prepare
from wellread.config import RunConfig
from wellread.corpus.read import Corpus
from wellread.data import influence
from wellread.errors import UserError
from wellread.order import metrics
from wellread.record.verify import verify
from wellread.run import RunDirectory


def table(file: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), file)
    return file


@pytest.fixture
def small(tmp_path: Path) -> RunDirectory:
    """A run of twelve samples, of which 0 to 7 are read, two per batch."""
    return make_run(tmp_path / "run")


def test_scores_are_a_metric_of_orders_and_reports(small: RunDirectory, tmp_path: Path) -> None:
    directory = small.corpus.resolve()
    before = Corpus.open(directory)
    file = table(tmp_path / "scores.parquet", score=[0.5 * i - 1 for i in range(7, -1, -1)], sample_id=range(7, -1, -1))
    influence.add(directory, file)
    corpus = Corpus.open(directory)
    assert corpus.hash == before.hash
    assert corpus.metric("influence")[:8].tolist() == [-1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5]
    assert np.isnan(corpus.metric("influence")[8:]).all()
    assert metrics.column(corpus, "influence", "--order").tolist() == [-1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5]
    section = reading(Facts.of(small), [])
    assert section is not None
    assert section.tables[0].heads[-1] == "influence"
    assert [row[-1] for row in section.tables[0].rows] == [None, -0.25, 1.75]  # samples 0 to 3, then 4 to 7
    influence.add(directory, file)  # the same again
    with pytest.raises(UserError, match="already has other scores; choose another --corpora"):
        influence.add(directory, table(tmp_path / "other.parquet", sample_id=[0], score=[9.0]))


def test_an_order_needs_a_score_for_each_trainable_sample(small: RunDirectory, tmp_path: Path) -> None:
    influence.add(small.corpus.resolve(), table(tmp_path / "s.parquet", sample_id=[0, 1, 2], score=[1.0, 2.0, 3.0]))
    with pytest.raises(UserError, match=r"--order: sample 3 \(and 4 more\) has no influence"):
        metrics.column(Corpus.open(small.corpus), "influence", "--order")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sample_id": [0]}, "no column score; give a table with sample_id and score"),
        ({"score": [0.5]}, "no column sample_id; give a table with sample_id and score"),
        ({"sample_id": [0.5], "score": [1.0]}, "column sample_id must have whole numbers, one in each row"),
        ({"sample_id": [0], "score": ["a"]}, "column score must have numbers, one in each row"),
        ({"sample_id": [0, 1], "score": [1.0, None]}, "column score must have numbers, one in each row"),
        ({"sample_id": [3, 2, 3], "score": [1.0, 2.0, 1.0]}, "sample 3 has several scores; give one per sample"),
        ({"sample_id": [1, 2], "score": [1.0, float("nan")]}, "the score of sample 2 is not finite"),
        ({"sample_id": [1, 12], "score": [1.0, 2.0]}, "sample 12 does not exist; corpus has 12"),
        ({"sample_id": [-1, 2], "score": [1.0, 2.0]}, "sample -1 does not exist; corpus has 12"),
    ],
)
def test_mistakes(columns: dict[str, Any], message: str, small: RunDirectory, tmp_path: Path) -> None:
    file = table(tmp_path / "scores.parquet", **columns)
    with pytest.raises(UserError) as refused:
        influence.add(small.corpus.resolve(), file)
    assert str(refused.value).startswith(f"--influence {file}: ")
    assert message in str(refused.value)
    assert Corpus.open(small.corpus).metrics == ()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        influence.read(tmp_path / "none.parquet")
    (tmp_path / "x.parquet").write_text("x")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        influence.read(tmp_path / "x.parquet")


def test_a_column_that_appears_twice_is_named(tmp_path: Path) -> None:
    arrays = [pa.array([0]), pa.array([1.0]), pa.array([2.0])]
    for name in ("score", "note"):
        names = ["sample_id", "score" if name == "score" else name, name]
        pq.write_table(pa.Table.from_arrays(arrays, names=names), tmp_path / "scores.parquet")
        with pytest.raises(UserError) as refused:
            influence.read(tmp_path / "scores.parquet")
        assert str(refused.value) == f"--influence {tmp_path / 'scores.parquet'}: has several columns {name}; give one"


@pytest.mark.long
def test_prepare_adds_scores_to_a_corpus_that_exists(
    copied_run: RunDirectory, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(corpus.path, tmp_path / "corpora" / corpus.path.name)
    file = table(tmp_path / "scores.parquet", sample_id=range(corpus.n_trainable), score=range(corpus.n_trainable))
    directory = prepare(RunConfig.of(corpora=str(tmp_path / "corpora"), influence=str(file)))
    assert directory == tmp_path / "corpora" / corpus.path.name
    printed = capsys.readouterr().out
    assert "already compiled" in printed
    assert f"influence: {corpus.n_trainable} of {corpus.n} samples have a score" in printed
    influence.add(copied_run.corpus.resolve(), file)
    assert verify(copied_run) == []
