"""Metrics of samples: numeric columns of a corpus, by which an order can filter and sort."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.read import METRICS, Corpus
from wellread.errors import UserError
from wellread.files import release

IDS = ("sample_id", "document")
"""Numeric columns that are ids, not metrics."""
VALUES_AT_ONCE = 1 << 20
"""Values that are hashed at once."""


def names(corpus: Corpus) -> list[str]:
    """Metrics that the corpus has: numeric columns of samples.parquet and of metrics.parquet."""
    return list(_files(corpus))


def column(corpus: Corpus, metric: str, where: str) -> NDArray[Any]:
    """One metric of all trainable samples but canaries, int64 or float64[n_ordinary].

    Raises
    ------
    UserError
        When there is no such metric, or a trainable sample has no value; the message begins with `where`.
    """
    import pyarrow.parquet

    files = _files(corpus)
    hint = f"this corpus has the metrics {', '.join(files)}"
    if not corpus.metrics:
        hint += "; text metrics need --metrics"
    if metric not in files:
        raise UserError(f"{where}: no metric {metric!r}; {hint}")
    table_column = pyarrow.parquet.read_table(files[metric], columns=[metric])[metric]
    if len(table_column) != corpus.n:
        raise UserError(
            f"{files[metric]}: {len(table_column):,} rows for {corpus.n:,} samples; compile the corpus again"
        )
    values = table_column.slice(0, corpus.n_ordinary).to_numpy()
    missing = np.flatnonzero(np.isnan(values))
    if len(missing):
        also = f" (and {len(missing) - 1:,} more)" * (len(missing) > 1)
        raise UserError(f"{where}: sample {missing[0]}{also} has no {metric}; {hint}")
    return np.ascontiguousarray(values, dtype=np.float64 if values.dtype.kind == "f" else np.int64)


def digest(values: NDArray[Any]) -> str:
    """Hex sha256 of a column's values, as little-endian int64 or float64."""
    state, dtype = hashlib.sha256(), values.dtype.newbyteorder("<")
    for start in range(0, len(values), VALUES_AT_ONCE):  # a list of ids may be larger than the memory
        state.update(np.ascontiguousarray(values[start : start + VALUES_AT_ONCE], dtype=dtype).data)
        release(values)
    return state.hexdigest()


def _files(corpus: Corpus) -> dict[str, Path]:
    """Metric -> Parquet file that has it."""
    import pyarrow.parquet

    types = pyarrow.types
    files: dict[str, Path] = {}
    for path in (corpus.path / "samples.parquet", corpus.path / METRICS):
        for field in pyarrow.parquet.read_schema(path) if path.is_file() else ():
            if field.name not in IDS and (types.is_integer(field.type) or types.is_floating(field.type)):
                files.setdefault(field.name, path)
    return files
