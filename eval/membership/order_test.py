"""The order test: does a checkpoint's score of a sample depend on *when* the sample was read?

Under a random order, the batch in which a sample was read says nothing about its text. If scores correlate with it,
the model has been trained on these samples in this order (Kuditipudi et al. 2025). No non-members are needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from eval.separation import Floats, Ints, permuted
from eval.statistics import TooFew, permutation_p

PERMUTATIONS = 999
FEWEST = 10
"""Documents that can be exchanged, at least."""


@dataclass(frozen=True)
class OrderTest:
    """Correlation of score and time of the last reading."""

    rho: float
    """Spearman's correlation within epochs; positive: what was read later has a higher score."""
    p: float
    """Two-sided p-value, by permutation over documents."""
    z: float
    """rho in standard deviations of its distribution under permutation."""
    n: int
    """Number of samples."""
    documents: int
    """Number of documents that can be exchanged with another one."""


def order_test(
    scores: Floats, last_read: Ints, epochs: Ints, documents: Ints, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> OrderTest:
    """Test whether scores depend on the batch of the last reading, within epochs.

    The unit is a document in an epoch: its mean score, and its mean batch. Both are ranked within their epoch, so
    epochs are never compared. Units are exchanged with others of the same epoch and number of samples; means over
    more samples vary less, so others could not be exchanged. The test is two-sided, since the sign is not fixed: with
    Adam, the newest batches are not yet learned, and at the end of a schedule the learning rate has decayed.

    Parameters
    ----------
    scores
        Score of each sample, float64[n]; with a reference model, the difference to its score. Never the difference to
        the recorded loss, which depends on the time of reading itself.
    last_read, epochs
        Batch and epoch of the last reading of each sample, int64[n].
    documents
        Document of each sample, int64[n].

    Raises
    ------
    ValueError
        When a score is NaN.
    TooFew
        When fewer than `FEWEST` documents can be exchanged.
    """
    from scipy.stats import rankdata

    if np.isnan(scores).any():
        raise ValueError("a score is NaN")
    (epoch_of, _), unit_of = np.unique(np.stack([epochs, documents]), axis=1, return_inverse=True)
    unit_of, sizes = unit_of.ravel(), np.bincount(unit_of.ravel())
    ranked = rankdata(scores)  # an infinite score has no mean
    means = [np.bincount(unit_of, weights=of) / sizes for of in (ranked, last_read)]
    score, batch = (_within(epoch_of, of, rankdata) for of in means)
    strata = list(_groups(np.unique(np.stack([epoch_of, sizes]), axis=1, return_inverse=True)[1].ravel()))
    exchangeable = sum(stratum.size for stratum in strata)
    if exchangeable < FEWEST:
        raise TooFew(f"the order test needs {FEWEST} documents that can be exchanged, not {exchangeable}")
    centered = [tuple(of[stratum] - of[stratum].mean() for of in (score, batch)) for stratum in strata]
    total = sum(float(x @ y) for x, y in centered)
    variance = sum(float((x @ x) * (y @ y)) / (x.size - 1) for x, y in centered)
    rng, draws = np.random.default_rng(seed), np.zeros(permutations)
    for x, y in centered:
        draws += _permuted_sums(x, y, permutations, rng)
    norm = math.sqrt(float((score @ score) * (batch @ batch)))
    return OrderTest(
        rho=float(score @ batch) / norm if norm else 0.0,
        p=permutation_p(abs(total), np.abs(draws)),
        z=total / math.sqrt(variance) if variance else 0.0,
        n=int(scores.size),
        documents=exchangeable,
    )


def _within(epochs: Ints, values: Floats, rank: Callable[[Floats], Floats]) -> Floats:
    """Ranks within each epoch, minus their mean; float64[n]."""
    ranks = np.empty(values.size)
    for epoch in np.unique(epochs):
        inside = epochs == epoch
        ranks[inside] = rank(values[inside]) - (inside.sum() + 1) / 2
    return ranks


def _groups(codes: Ints) -> Iterator[Ints]:
    """Indices of equal codes, of each code with at least two."""
    ordered = np.argsort(codes, kind="stable")
    bounds = np.flatnonzero(np.diff(codes[ordered])) + 1
    yield from (group for group in np.split(ordered, bounds) if group.size > 1)


def _permuted_sums(x: Floats, y: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """Sum of products of `x` and permuted `y`, float64[draws]."""
    return np.concatenate([part @ x for part in permuted(y, draws, rng)])
