"""Dataset inference: was this *set* of documents read, judging by all scores together? (Maini et al. 2024)

A score that hardly separates single samples may still separate sets. The scores are combined on one half of the
documents, and the combination is tested on the other half.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.separation import Floats, Ints, codes_of
from eval.statistics import TooFew, permutation_p

SPLITS = 200
PERMUTATIONS = 999
FEWEST = 20
"""Documents that each side needs."""
PENALTY = 1.0
"""Ridge penalty, per document of half A and standardized score: 1 halves the weights of uncorrelated scores."""

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class DatasetInference:
    """Whether members score higher than non-members in a combination of scores that was learned on other documents."""

    p: float
    """One-sided p-value of all splits together, by permutation of the labels among documents."""
    median_p: float
    """Median over splits of the one-sided p-value of Welch's test on half B."""
    significant: float
    """Share of splits in which that p-value is below 0.05."""
    members: int
    """Documents of the members."""
    nonmembers: int
    """Documents of the non-members."""


def dataset_inference(
    scores: Floats,
    is_member: Bools,
    documents: Ints,
    *,
    splits: int = SPLITS,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> DatasetInference:
    """Combine scores on half A of the documents, test on half B, in many random splits.

    Each score becomes its normal quantiles over all samples, so outliers and infinite scores do not matter, and each
    document the mean of its samples. On half A a ridge regression predicts membership; on half B, Welch's one-sided
    t-test compares the predictions of members and non-members. p-values of overlapping splits cannot be combined by a
    formula: the mean t over splits is compared with its values after permuting the labels among documents.

    Parameters
    ----------
    scores
        float64[n, k]: k scores of each sample; a higher one means "more likely a member".
    is_member
        bool[n].
    documents
        Document of each sample, int64[n].

    Raises
    ------
    ValueError
        When a score is NaN, or a document is on both sides.
    TooFew
        When a side has fewer than `FEWEST` documents.
    """
    from scipy.special import stdtr

    if np.isnan(scores).any():
        raise ValueError("a score is NaN")
    codes = codes_of(documents)
    members = np.bincount(codes, weights=is_member) > 0
    if (members[codes] != is_member).any():
        raise ValueError("a document has members and non-members")
    if min(members.sum(), (~members).sum()) < FEWEST:
        raise TooFew(
            f"dataset inference needs {FEWEST} documents of each side, not {members.sum()} and {(~members).sum()}"
        )
    features, rng = _features(scores, codes), np.random.default_rng(seed)
    shuffled = rng.permuted(np.broadcast_to(members, (permutations, members.size)), axis=1)
    labels = np.ascontiguousarray(np.concatenate([members[None], shuffled]).T, dtype=np.float32)
    mean_t, p_values = np.zeros(permutations + 1), np.empty(splits)
    for split in range(splits):
        half_a, half_b = np.array_split(rng.permutation(members.size), 2)
        t, freedom = _tests(features, labels, half_a, half_b)
        mean_t += t / splits
        p_values[split] = stdtr(freedom[0], -t[0])
    return DatasetInference(
        p=permutation_p(float(mean_t[0]), mean_t[1:]),
        median_p=float(np.median(p_values)),
        significant=float((p_values < 0.05).mean()),
        members=int(members.sum()),
        nonmembers=int((~members).sum()),
    )


def _features(scores: Floats, codes: Ints) -> Floats:
    """Normal quantiles of each score, mean over the samples of each document; float64[documents, k]."""
    from scipy.special import ndtri
    from scipy.stats import rankdata

    normal = ndtri((rankdata(scores, axis=0) - 0.5) / len(scores))
    sizes = np.bincount(codes)
    return np.stack([np.bincount(codes, weights=column) / sizes for column in normal.T], axis=1)


def _tests(features: Floats, labels: NDArray[np.float32], half_a: Ints, half_b: Ints) -> tuple[Floats, Floats]:
    """Welch's t and degrees of freedom on half B for each column of `labels`, float32[documents, draws].

    Predictions are linear, so their mean and variance on a side follow from sums of the features and of their products
    there: for all draws one matrix product. t is 0 where half B has fewer than two documents of a side, or all
    predictions are equal: such a split shows nothing.
    """
    a = features[half_a] - features[half_a].mean(axis=0)
    weights = np.linalg.solve(a.T @ a + PENALTY * len(a) * np.eye(a.shape[1]), _product(a, labels[half_a]))
    b, of_members = features[half_b], labels[half_b]
    rows, columns = np.triu_indices(b.shape[1])
    terms = np.concatenate([b, b[:, rows] * b[:, columns]], axis=1)
    pairs = weights[rows] * weights[columns] * np.where(rows == columns, 1, 2)[:, None]
    sums, n = _product(terms, of_members), of_members.sum(axis=0).astype(np.float64)
    mean, error = _moments(weights, pairs, sums, n)
    other_mean, other_error = _moments(weights, pairs, terms.sum(axis=0)[:, None] - sums, len(b) - n)
    total = error + other_error
    usable = (n > 1) & (len(b) - n > 1) & (total > 1e-30)
    t = np.where(usable, (mean - other_mean) / np.sqrt(np.where(usable, total, 1)), 0)
    squares = error**2 / np.maximum(n - 1, 1) + other_error**2 / np.maximum(len(b) - n - 1, 1)
    return t, np.where(usable, total**2 / np.where(usable, squares, 1), 1)


def _product(columns: Floats, labels: NDArray[np.float32]) -> Floats:
    """Sums of columns over members, float64[columns, draws]; added in float32, which takes half the time."""
    return np.asarray(columns.astype(np.float32).T @ labels, dtype=np.float64)


def _moments(weights: Floats, pairs: Floats, sums: Floats, n: Floats) -> tuple[Floats, Floats]:
    """Mean and squared standard error of the predictions of one side, float64[draws] each."""
    k, count = len(weights), np.maximum(n, 1)
    mean = (weights * sums[:k]).sum(axis=0) / count
    variance = np.maximum((pairs * sums[k:]).sum(axis=0) / count - mean**2, 0)
    return mean, variance / np.maximum(n - 1, 1)
