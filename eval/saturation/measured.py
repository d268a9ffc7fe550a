"""Text metrics of the samples that a run has read, for corpora that were compiled without them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wellread.data import text_metrics

if TYPE_CHECKING:
    from eval.separation import Floats, Ints
    from wellread.corpus.read import Corpus
    from wellread.record.reader import Record
    from wellread.run import RunDirectory

ROWS_AT_ONCE = 1 << 18
"""Readings of the record that are in memory at once."""
AT_ONCE = 2048
"""Samples that are decoded at once."""


def metrics_of(run: RunDirectory, corpus: Corpus) -> dict[str, Floats]:
    """Text metrics of the trainable samples: those of the corpus, else those that `measure` has kept; else none.

    Returns
    -------
    dict
        Name -> float64[n_trainable]; NaN for samples that were not read when they were measured.
    """
    if corpus.metrics:
        return {name: corpus.metric(name)[: corpus.n_trainable].astype(np.float64) for name in corpus.metrics}
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

    from wellread.corpus.tokenizer import Tokenizer
    from wellread.results import write_table

    ids = _read_samples(record, corpus.n_trainable)
    tokenizer = Tokenizer.load(corpus.tokenizer)
    special = np.array(sorted(tokenizer.special_ids))
    parts = [np.zeros((0, len(text_metrics.NAMES)), dtype=np.float32)]
    for start in range(0, ids.size, AT_ONCE):
        samples = (corpus.tokens(int(i)) for i in ids[start : start + AT_ONCE])
        texts = [tokenizer.decode(tokens[~np.isin(tokens, special)].tolist()) for tokens in samples]
        parts.append(text_metrics.measure(texts))
    columns = dict(zip(text_metrics.NAMES, np.concatenate(parts).T, strict=True))
    table = pa.table({"sample_id": ids, **{name: np.ascontiguousarray(column) for name, column in columns.items()}})
    write_table(_file(run), table.replace_schema_metadata({"corpus": corpus.hash}))


def _read_samples(record: Record, n_trainable: int) -> Ints:
    was_read = np.zeros(n_trainable, dtype=np.bool_)
    for _, _, table in record.pieces(["sample_id"], ROWS_AT_ONCE):
        was_read[table.column("sample_id").to_numpy()] = True
    return np.flatnonzero(was_read)


def _file(run: RunDirectory) -> Path:
    return run.eval / "saturation" / "metrics.parquet"
