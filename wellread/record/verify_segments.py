"""Verify the segments of a packed corpus: their table against their tokens, and the samples that consist of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.pack import joined_document, shared
from wellread.corpus.read import Corpus
from wellread.corpus.segments import FILE, Segments
from wellread.record.findings import Findings
from wellread.record.verify_tables import (
    COLUMNS,
    SAMPLES,
    check_form,
    check_holdout,
    check_rows,
    column_of,
    pieces,
    unseen,
)

if TYPE_CHECKING:
    import pyarrow


def check_segments(findings: Findings, corpus: Corpus) -> None:
    """Compare the segments table with the tokens, and with the samples that consist of them, some samples at once."""
    segments, place = Segments(corpus), corpus.path / FILE
    if not check_form(findings, place, ("segment", *COLUMNS), segments.n, "segments.npy"):
        return
    rows, marks = _Rows(place), unseen(corpus)
    for start, samples in pieces(corpus.path / SAMPLES):
        ids = np.arange(start, min(start + len(samples), corpus.n))
        if not len(ids):
            return  # more rows than samples, which the check of samples.parquet reports
        first, stop = (int(corpus.segment_offsets[i]) for i in (start, ids[-1] + 1))
        table = rows.take(stop - first)
        _check_columns(findings, segments, place, samples, table, start, first)
        check_holdout(findings, corpus, place, table, first)
        check_rows(findings, corpus, place, table, first, marks)
        _check_joined(findings, corpus, samples, table, start, corpus.segment_offsets[start : ids[-1] + 2])
        corpus.release()


class _Rows:
    """The rows of a table, taken from the first to the last; only those of some pieces are in memory."""

    def __init__(self, place: Path) -> None:
        self._tables: Iterator[pyarrow.Table] = (table for _, table in pieces(place))
        self._left: list[pyarrow.Table] = []

    def take(self, n: int) -> pyarrow.Table:
        """The next `n` rows, or fewer at the end."""
        import pyarrow

        while sum(map(len, self._left)) < n and (table := next(self._tables, None)) is not None:
            self._left.append(table)
        table = pyarrow.concat_tables(self._left) if self._left else pyarrow.table({})
        self._left = [table.slice(n)]
        return table.slice(0, n)


def _check_columns(
    findings: Findings,
    segments: Segments,
    place: Path,
    samples: pyarrow.Table,
    table: pyarrow.Table,
    start: int,
    first: int,
) -> None:
    """Columns that follow from tokens and samples; `start` is the first sample, and `first` its first segment."""
    ids, path = np.arange(first, first + len(table)), segments.path
    digests, samples_of = table["digest"].to_pylist(), segments.sample_of(ids)
    findings.add_rows(
        f"{path}: segment {{}}: its tokens or loss mask do not match its digest",
        [i for i in ids.tolist() if segments.digest(i) != digests[i - first]],
    )
    findings.add_rows(
        f"{path}: segment {{}}: is not part of the sample that the segments table names",
        ids[table["sample_id"].to_numpy() != samples_of].tolist(),
    )
    columns: dict[str, NDArray[np.generic]] = {
        "segment": ids,
        "n_tokens": segments.lengths(ids),
        "n_targets": np.array([int(segments.targets(i).sum()) for i in ids.tolist()]),
    }
    columns |= {name: column_of(samples, name)[samples_of - start] for name in ("split", "source")}
    for name, expected in columns.items():
        findings.expect_column(place, name, column_of(table, name), expected, "segment", first)


def _check_joined(
    findings: Findings,
    corpus: Corpus,
    samples: pyarrow.Table,
    table: pyarrow.Table,
    start: int,
    bounds: NDArray[np.int64],
) -> None:
    """Columns of packed samples that follow from their segments; `bounds` are the first segments of the samples."""
    place = corpus.path / SAMPLES
    columns = {name: table[name].to_pylist() for name in ("document", "rows", "category", "author")}
    of_samples = {name: samples[name].to_pylist() for name in columns}
    for k, (a, b) in enumerate(pairwise((bounds - bounds[0]).tolist())):
        i = start + k
        if joined_document(columns["document"][a:b]) != of_samples["document"][k]:
            findings.add(f"{corpus.path}: sample {i}: its document does not match its segments")
        rows = [row for of_segment in columns["rows"][a:b] for row in of_segment]
        findings.expect(place, f"rows: sample {i}", of_samples["rows"][k], rows, "its segments")
        for name in ("category", "author"):
            value = of_samples[name][k] or ""
            findings.expect(place, f"{name}: sample {i}", value, shared(columns[name][a:b]) or "", "its segments")
