"""How well scores separate members from non-members: AUC, TPR at a bounded FPR, bootstrap, shuffled control."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ALPHAS = (0.1, 0.01, 0.001)
"""False-positive rates at which the true-positive rate is reported."""


def auc(members: Floats, nonmembers: Floats) -> float:
    """Area under the ROC curve: the probability that a member scores above a non-member; ties count half.

    The Mann-Whitney U statistic divided by its largest value (Mann & Whitney 1947), in O(n log n).

    Parameters
    ----------
    members, nonmembers
        Scores, float[m] and float[n], finite and not empty.
    """
    below, up_to = _ranks(members, np.sort(nonmembers))
    return float((below + up_to).sum() / (2 * members.size * nonmembers.size))


def roc(members: Floats, nonmembers: Floats) -> tuple[Floats, Floats]:
    """False- and true-positive rate at every threshold, from (0, 0) to (1, 1); float64[k] each, ascending."""
    thresholds = np.unique(np.concatenate([members, nonmembers]))[::-1]
    rates = [1 - np.searchsorted(np.sort(side), thresholds, "left") / side.size for side in (nonmembers, members)]
    return np.concatenate([[0.0], rates[0]]), np.concatenate([[0.0], rates[1]])


def nonmembers_needed(alpha: float) -> int:
    """Number of non-members needed to report the true-positive rate at false-positive rate `alpha`: 10 / alpha."""
    return math.ceil(10 / alpha - 1e-9)


def tpr_at_fpr(members: Floats, nonmembers: Floats, alpha: float) -> float | None:
    """Largest true-positive rate at a false-positive rate of at most `alpha`; None below 10 / alpha non-members.

    Raises
    ------
    ValueError
        Unless 0 < alpha < 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"false-positive rate {alpha}: must be between 0 and 1")
    if nonmembers.size < nonmembers_needed(alpha):
        return None
    u, v = np.ones((1, members.size)), np.ones((1, nonmembers.size))
    return float(_weighted_tpr(np.sort(members), u, np.sort(nonmembers), v, alpha)[0])


def threshold_at_fpr(nonmembers: Floats, alpha: float) -> float:
    """Score above which at most `alpha` of the non-members are: what is higher is called a member.

    Parameters
    ----------
    nonmembers
        Scores, float[n], not empty.
    """
    allowed = math.floor(alpha * nonmembers.size + 1e-9)
    return float(np.sort(nonmembers)[::-1][min(allowed, nonmembers.size - 1)])


def cluster_bootstrap(
    members: Floats,
    nonmembers: Floats,
    member_documents: Ints,
    nonmember_documents: Ints,
    *,
    draws: int,
    seed: int,
    alpha: float | None = None,
) -> Floats:
    """AUC, or TPR at FPR <= `alpha`, in bootstrap draws of documents, drawn separately for members and non-members.

    Samples of one document are not independent, so documents, not samples, are drawn with replacement (cluster
    bootstrap, Davison & Hinkley 1997, section 3.8). Memory stays near 100 MB for any number of draws.

    Parameters
    ----------
    member_documents, nonmember_documents
        Document of each sample, int[m] and int[n].

    Returns
    -------
    float64[draws]
    """
    order, other = np.argsort(members), np.argsort(nonmembers)
    codes, other_codes = codes_of(member_documents[order]), codes_of(nonmember_documents[other])
    rng = np.random.default_rng(seed)
    values = []
    for size in chunks(draws, members.size + nonmembers.size):
        u, v = _draw(rng, codes, size), _draw(rng, other_codes, size)
        sides = (members[order], u, nonmembers[other], v)
        values.append(_weighted_auc(*sides) if alpha is None else _weighted_tpr(*sides, alpha))
    return np.concatenate(values)


def permuted_auc(
    members: Floats, nonmembers: Floats, member_documents: Ints, nonmember_documents: Ints, *, draws: int, seed: int
) -> Floats:
    """AUC after shuffling the labels among documents: the values that chance gives; float64[draws]."""
    documents = codes_of(np.concatenate([member_documents, nonmember_documents]))
    scores = np.concatenate([members, nonmembers])
    below, up_to = _ranks(scores, np.sort(scores))
    sizes = np.bincount(documents)
    rank_sums = np.bincount(documents, weights=(below + up_to + 1) / 2)  # mid-ranks, counted from 1
    labels = np.arange(sizes.size) < np.unique(member_documents).size
    rng = np.random.default_rng(seed)
    values = []
    for size in chunks(draws, sizes.size):
        shuffled = rng.permuted(np.broadcast_to(labels, (size, labels.size)), axis=1).astype(np.float64)
        m = shuffled @ sizes
        values.append((shuffled @ rank_sums - m * (m + 1) / 2) / (m * (scores.size - m)))
    return np.concatenate(values)


def _ranks(values: Floats, ordered: Floats) -> tuple[Ints, Ints]:
    return np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")


def codes_of(documents: Ints) -> Ints:
    """Number documents 0, 1, 2 ... in the order of their ids; same shape."""
    return np.unique(documents, return_inverse=True)[1]


def chunks(draws: int, width: int) -> Iterator[int]:
    """Sizes of parts of `draws`, so that a matrix of a part and `width` has at most 16 MB of float64."""
    size = max(1, 2_000_000 // width)
    yield from (min(size, draws - start) for start in range(0, draws, size))


def _draw(rng: np.random.Generator, codes: Ints, draws: int) -> Floats:
    """How often each sample is drawn when its documents are drawn with replacement; float64[draws, n]."""
    count = int(codes.max()) + 1
    picks = rng.integers(count, size=(draws, count)) + count * np.arange(draws)[:, None]
    times = np.bincount(picks.ravel(), minlength=draws * count).reshape(draws, count)
    return times[:, codes].astype(np.float64)


def _weighted_auc(members: Floats, u: Floats, nonmembers: Floats, v: Floats) -> Floats:
    """`auc` with weights u[draws, m] and v[draws, n]; scores must be ascending."""
    cumulative = np.concatenate([np.zeros((len(v), 1)), v.cumsum(axis=1)], axis=1)
    below, up_to = _ranks(members, nonmembers)
    wins = (u * (cumulative[:, below] + cumulative[:, up_to])).sum(axis=1)
    return np.asarray(wins / (2 * u.sum(axis=1) * cumulative[:, -1]))


def _weighted_tpr(members: Floats, u: Floats, nonmembers: Floats, v: Floats, alpha: float) -> Floats:
    """`tpr_at_fpr` with weights u[draws, m] and v[draws, n]; scores must be ascending.

    Counted from the highest score down, the first non-member whose weight exceeds `alpha` must be at or below the
    threshold.
    """
    from_top = v[:, ::-1].cumsum(axis=1)
    breaks = np.argmax(from_top > alpha * from_top[:, -1:] + 1e-9, axis=1)
    barred = np.searchsorted(members, nonmembers[::-1][breaks], "right")
    from_bottom = np.concatenate([np.zeros((len(u), 1)), u.cumsum(axis=1)], axis=1)
    return np.asarray(1 - from_bottom[np.arange(len(u)), barred] / from_bottom[:, -1])
