"""Text metrics of the samples that a run has read, for corpora that were compiled without them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wellread.data import sample_metrics, text_metrics

if TYPE_CHECKING:
    from eval.separation import Floats, Ints
    from wellread.corpus.read import Corpus
    from wellread.record.reader import Record
    from wellread.run import RunDirectory

ROWS_AT_ONCE = 1 << 18
"""Readings of the record that are in memory at once."""


def metrics_of(run: RunDirectory, corpus: Corpus) -> dict[str, Floats]:
    """Metrics of the trainable samples: those of the corpus, and without text metrics there, those that `measure` kept.

    Returns
    -------
    dict
        Name -> float64[n_trainable]; NaN for samples that were not read when they were measured, or without a score.
    """
    values = {name: corpus.metric(name)[: corpus.n_trainable].astype(np.float64) for name in corpus.metrics}
    return values if sample_metrics.has(corpus) else values | _text_metrics(run, corpus)


def _text_metrics(run: RunDirectory, corpus: Corpus) -> dict[str, Floats]:
    from wellread.results import read_table

    if not (path := _file(run)).is_file():
        return {}
    table = read_table(path)
    if (table.schema.metadata or {}).get(b"corpus") != corpus.hash.encode():
        return {}
    values = {}
    for name in text_metrics.NAMES:
        values[name] = np.full(corpus.n_trainable, np.nan)
        values[name][table.column("sample_id").to_numpy()] = table.column(name).to_numpy()
    return values


def measure(run: RunDirectory, corpus: Corpus, record: Record) -> None:
    """Decode every sample that the run has read, without special tokens, and keep its text metrics."""
    import pyarrow as pa

    from wellread.results import write_table
    from wellread.terminal import progress

    ids = read_samples(record, corpus.n_trainable)
    with progress("measuring texts", ids.size) as show:
        values = sample_metrics.measure(corpus, ids, show)
    columns = dict(zip(text_metrics.NAMES, values.T, strict=True))
    table = pa.table({"sample_id": ids, **{name: np.ascontiguousarray(column) for name, column in columns.items()}})
    write_table(_file(run), table.replace_schema_metadata({"corpus": corpus.hash}))


def read_samples(record: Record, n_trainable: int) -> Ints:
    """Ids of the samples that a run has read at least once, int64[n], ascending."""
    was_read = np.zeros(n_trainable, dtype=np.bool_)
    for _, _, table in record.pieces(["sample_id"], ROWS_AT_ONCE):
        was_read[table.column("sample_id").to_numpy()] = True
    return np.flatnonzero(was_read)


def _file(run: RunDirectory) -> Path:
    return run.eval / "saturation" / "metrics.parquet"
