"""Verify the losses of sealed samples in the record: their files, and every column that follows from the corpus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wellread.corpus.read import Corpus
from wellread.record import sealed
from wellread.record.findings import Findings
from wellread.record.reader import Record
from wellread.record.verify_tables import check_types, refuse_nulls

if TYPE_CHECKING:
    import pyarrow


def check(findings: Findings, record: Record, corpus: Corpus) -> None:
    """Check each file that head.json names: hash, rows, steps, and that all its samples are sealed ones.

    Nothing is compared with the model: a loss is only a number of at least 0.
    """
    place, last = record.directory / "head.json", -1
    for file in record.sealed_files:
        path = record.directory / file["name"]
        findings.expect(
            place, f"name of sealed losses {path.name}", path.name, sealed.file_name(file["from"], file["to"])
        )
        if not last < file["from"] <= file["to"] <= record.batches:
            findings.add(f"{place}: sealed losses {path.name}: steps after {last} and up to {record.batches} expected")
        last = file["to"]
        if problem := record.damage(file):
            findings.add(problem)
        else:
            with findings.reading(path):
                _check_file(findings, path, file, corpus)


def _check_file(findings: Findings, path: Path, file: dict[str, Any], corpus: Corpus) -> None:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as content:
        table = content.read()
    complete = findings.expect(path, "columns", list(table.column_names), list(sealed.COLUMNS))
    findings.expect(path, "rows", len(table), file["rows"], "head.json")
    check_types(findings, path, table.schema)
    refuse_nulls(path, table, 0)
    if complete and len(table):
        _check_rows(findings, path, file, corpus, table)


def _check_rows(findings: Findings, path: Path, file: dict[str, Any], corpus: Corpus, table: pyarrow.Table) -> None:
    steps, ids, n_targets, losses = (table[name].to_numpy() for name in sealed.COLUMNS)
    findings.expect(path, "first and last step", [int(steps[0]), int(steps[-1])], [file["from"], file["to"]])
    ascending = (np.diff(steps) > 0) | ((np.diff(steps) == 0) & (np.diff(ids) > 0))
    findings.add_rows(f"{path}: row {{}}: step and sample do not ascend", (np.flatnonzero(~ascending) + 1).tolist())
    inside = (ids >= corpus.n_trainable) & (ids < corpus.n)
    findings.add_rows(f"{path}: row {{}}: its sample is not a sealed one", np.flatnonzero(~inside).tolist())
    expected = np.where(inside, corpus.n_targets(np.where(inside, ids, 0)), n_targets)
    findings.expect_column(path, "n_targets", n_targets, expected)
    wrong = np.flatnonzero(~(losses >= 0))  # also NaN
    findings.add_rows(f"{path}: row {{}}: loss is not a number of at least 0", wrong.tolist())
