"""Bands between runs: by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from eval.between import bands, figures_of, table_of, write
from wellread.run import RunDirectory

RUNS = [
    {"a/m": {0: 1.0, 2: 4.0, 4: 9.0}, "b/m": {0: 0.0}, "only/here": {0: 1.0}},
    {"b/m": {0: 6.0, 2: 1.0}, "a/m": {0: 3.0, 4: 5.0}},
    {"a/m": {4: 10.0, 0: 2.0}, "b/m": {0: 3.0}},
]


def test_bands_by_hand(tmp_path: Path) -> None:
    rows = bands(RUNS)
    assert [(row.metric, row.step, row.mean, row.low, row.high, row.runs) for row in rows] == [
        ("a/m", 0, 2.0, 1.0, 3.0, 3),
        ("a/m", 4, 8.0, 5.0, 10.0, 3),
        ("b/m", 0, 3.0, 0.0, 6.0, 3),
    ]
    assert [row.sd for row in rows] == pytest.approx([1.0, math.sqrt(7), 3.0])
    table = table_of(rows)
    assert table.caption == "Metrics of 3 runs at the last step that all have"
    assert table.rows[0][:5] == ["a/m", 4, 8.0, 5.0, 10.0]
    write(tmp_path / "runs.parquet", rows, [RunDirectory(tmp_path / name) for name in "xyz"])
    assert pq.read_table(tmp_path / "runs.parquet").to_pylist() == [vars(row) for row in rows]


def test_one_figure_per_metric_with_a_band_per_group() -> None:
    (figure,) = figures_of(bands(RUNS)).values()
    spec = figure.spec()
    points = [row for data in spec["datasets"].values() for row in data if row["series"] == "a"]
    assert {(row["step"], row["value"], row["low"], row["high"]) for row in points} == {(0, 2, 1, 3), (4, 8, 5, 10)}


def test_runs_without_a_common_metric_or_step() -> None:
    assert bands([{"a/m": {0: 1.0}}, {"b/m": {0: 1.0}}]) == []
    assert bands([{"a/m": {0: 1.0}}, {"a/m": {2: 1.0}}]) == []
