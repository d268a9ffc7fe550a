"""Metrics of a corpus's samples, as columns by which an order can choose and sort."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.read import METRICS, Corpus
from wellread.errors import UserError

IDS = ("sample_id", "document")
"""Numeric columns that are names, not metrics."""


def names(corpus: Corpus) -> list[str]:
    """Metrics that the corpus has: numeric columns of samples.parquet and of metrics.parquet."""
    return list(_files(corpus))


def column(corpus: Corpus, metric: str, where: str) -> NDArray[Any]:
    """One metric of all trainable samples, int64 or float64[n_trainable].

    Raises
    ------
    UserError
        When there is no such metric, or a trainable sample lacks it; begins with `where`.
    """
    import pyarrow.parquet

    files = _files(corpus)
    there = f"this corpus has the metrics {', '.join(files)}"
    if "packing" in corpus.meta and not corpus.metrics:
        there += "; those of texts come with --metrics"
    if metric not in files:
        raise UserError(f"{where}: no metric {metric!r}; {there}")
    found = pyarrow.parquet.read_table(files[metric], columns=[metric])[metric]
    if len(found) != corpus.n:
        raise UserError(f"{files[metric]}: {len(found):,} rows for {corpus.n:,} samples; compile the corpus again")
    values = found.slice(0, corpus.n_trainable).to_numpy()
    lacking = np.flatnonzero(np.isnan(values))
    if len(lacking):
        also = f" (and {len(lacking) - 1:,} more)" * (len(lacking) > 1)
        raise UserError(f"{where}: sample {lacking[0]}{also} has no {metric}; {there}")
    return np.ascontiguousarray(values, dtype=np.float64 if values.dtype.kind == "f" else np.int64)


def digest(values: NDArray[Any]) -> str:
    """Hex sha256 of a column's values, as little-endian int64 or float64."""
    return hashlib.sha256(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).data).hexdigest()


def _files(corpus: Corpus) -> dict[str, Path]:
    """The file of each metric."""
    import pyarrow.parquet

    types = pyarrow.types
    files: dict[str, Path] = {}
    for path in (corpus.path / "samples.parquet", corpus.path / METRICS):
        for field in pyarrow.parquet.read_schema(path) if path.is_file() else ():
            if field.name not in IDS and (types.is_integer(field.type) or types.is_floating(field.type)):
                files.setdefault(field.name, path)
    return files
