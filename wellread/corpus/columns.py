"""Samples as columns: one array per field, and lengths for ragged fields. Shards and merging use this form.

Sample i has ``lengths[i]`` tokens, ``n_spans[i]`` spans (half-open ranges of its tokens that carry loss),
``n_rows[i]`` source rows, and one value in every other column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.digest import DIGEST_BYTES, digest

Columns = dict[str, NDArray[Any]]
DIGEST = np.dtype((np.void, DIGEST_BYTES))
VALUES_AT_ONCE = 1 << 20
"""Values that are compared at once, so that the memory does not grow with their number."""
RAGGED = {"tokens": "lengths", "spans": "n_spans", "rows": "n_rows"}
"""Columns with several values per sample -> the column with the number of values."""


def take(samples: Columns, places: NDArray[np.int64]) -> Columns:
    """The samples at the indices `places`, in this order."""
    return {
        name: values[_ragged(samples[RAGGED[name]], places) if name in RAGGED else places]
        for name, values in samples.items()
    }


def _ragged(lengths: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of all values of the samples at `places` in a ragged column."""
    counts = lengths[places]
    first = np.cumsum(lengths)[places] - counts
    return consecutive(first, counts)


def consecutive(first: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """first[i], first[i] + 1, …: counts[i] values for each i in turn, (counts.sum(),)."""
    return np.asarray(np.arange(counts.sum()) + np.repeat(first - (np.cumsum(counts) - counts), counts))


def is_ascending(values: NDArray[np.int64]) -> bool:
    """Whether no value is below the one before; some values at once."""
    parts = range(0, len(values), VALUES_AT_ONCE)
    return all((np.diff(values[start : start + VALUES_AT_ONCE + 1]) >= 0).all() for start in parts)


def joined(parts: Sequence[Columns]) -> Columns:
    """Concatenate the samples of several parts."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def first_rows(samples: Columns) -> NDArray[np.int64]:
    """First source row of each sample, (samples,)."""
    return np.asarray(samples["rows"][np.cumsum(samples["n_rows"]) - samples["n_rows"]])


def duplicates(documents: NDArray[np.int64], sets: NDArray[Any], rows: NDArray[np.int64]) -> int:
    """Number of source documents that are equal to an earlier one; windows of one document are not duplicates.

    Parameters
    ----------
    documents, sets, rows : (samples,)
        Document, index of the data set and first source row of each sample.
    """
    if not len(documents):
        return 0
    sources = sets.astype(np.int64) * (int(rows.max()) + 1) + rows
    return len(np.unique(sources)) - len(np.unique(documents))


def n_targets(samples: Columns) -> NDArray[np.int64]:
    """Number of tokens of each sample that carry loss, (samples,)."""
    sums = np.concatenate([[0], np.cumsum(samples["spans"][:, 1] - samples["spans"][:, 0], dtype=np.int64)])
    ends = np.cumsum(samples["n_spans"])
    return np.asarray(sums[ends] - sums[ends - samples["n_spans"]])


def digest_of_spans(
    tokens: NDArray[Any], spans: Sequence[tuple[int, int]] | NDArray[Any], starts: Sequence[int] | NDArray[Any] = (0,)
) -> bytes:
    """Digest of one sample (`wellread.corpus.digest.digest`) from the ranges of its tokens that carry loss."""
    targets = np.zeros(len(tokens), dtype=np.bool_)
    for first, stop in spans:
        targets[first:stop] = True
    return digest(tokens, targets, starts)
