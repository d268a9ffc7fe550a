"""Scores of samples that another program has computed, such as bergson, as the metric `influence` of a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.building import only_builder
from wellread.corpus.read import Corpus
from wellread.corpus.tables import add_metrics
from wellread.errors import UserError

NAME = "influence"
COLUMNS = ("sample_id", "score")


def add(directory: Path, file: Path) -> None:
    """Add the scores in a file to the metrics of a compiled corpus; samples without one have the value NaN.

    Neither the key of the corpus nor its hash changes. A corpus keeps its first scores.

    Raises
    ------
    UserError
        When the file is not valid, or the corpus has other scores.
    """
    ids, scores = read(file)
    with only_builder(directory):
        corpus = Corpus.open(directory)
        if ids.size and not 0 <= ids[0] <= ids[-1] < corpus.n:
            wrong = ids[0] if ids[0] < 0 else ids[-1]
            raise UserError(f"--influence {file}: sample {wrong} does not exist; {corpus.path.name} has {corpus.n:,}")
        column = _column(corpus, ids, scores)
        if NAME not in corpus.metrics:
            add_metrics(directory, {NAME: column})
        elif not np.array_equal(corpus.metric(NAME), column, equal_nan=True):
            raise UserError(
                f"--influence {file}: {directory} already has other scores; choose another --corpora, or leave it out"
            )
    print(f"influence: {ids.size:,} of {corpus.n:,} samples have a score", flush=True)


def has(corpus: Corpus, file: Path) -> bool:
    """Whether a corpus already has the scores of this file.

    Raises
    ------
    UserError
        When the file is not valid.
    """
    ids, scores = read(file)
    if NAME not in corpus.metrics or (ids.size and not 0 <= ids[0] <= ids[-1] < corpus.n):
        return False
    return np.array_equal(corpus.metric(NAME), _column(corpus, ids, scores), equal_nan=True)


def _column(corpus: Corpus, ids: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Score of each sample, NaN for none, float32[n]."""
    column = np.full(corpus.n, np.nan, dtype=np.float32)
    column[ids] = scores
    return column


def read(file: Path) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Sample ids, ascending, and their scores; (n,) each.

    Raises
    ------
    UserError
        When the file is not Parquet, a column is missing, repeated or not numeric, a sample is named twice, or a score
        is not finite.
    """
    file = file.expanduser()
    table = _table(file)
    columns: dict[str, NDArray[Any]] = {}
    for name, kinds, what in zip(COLUMNS, ("iu", "iuf"), ("whole numbers", "numbers"), strict=True):
        if name not in table.column_names:
            raise UserError(f"--influence {file}: no column {name}; give a table with {' and '.join(COLUMNS)}")
        columns[name] = table[name].to_numpy()
        if columns[name].dtype.kind not in kinds or table[name].null_count:
            raise UserError(f"--influence {file}: column {name} must have {what}, one in each row")
    ids, scores = columns["sample_id"].astype(np.int64), columns["score"].astype(np.float32)
    order = np.argsort(ids, kind="stable")
    ids, scores = ids[order], scores[order]
    if (repeated := np.flatnonzero(ids[1:] == ids[:-1])).size:
        raise UserError(f"--influence {file}: sample {ids[repeated[0]]} has several scores; give one per sample")
    if not np.isfinite(scores).all():
        raise UserError(f"--influence {file}: the score of sample {ids[~np.isfinite(scores)][0]} is not finite")
    return ids, scores


def _table(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(file).names if file.is_file() else []
        if repeated := [name for name in names if names.count(name) > 1]:
            raise UserError(f"--influence {file}: has several columns {repeated[0]}; give one")
        return pq.read_table(file)
    except FileNotFoundError:
        raise UserError(f"--influence {file}: no such file") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"--influence {file}: not a readable Parquet file") from error
