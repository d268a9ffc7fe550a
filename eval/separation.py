"""How well scores separate members from non-members: AUC, ROC, TPR at a bounded FPR; permutations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

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
    below, up_to = ranks(members, np.sort(nonmembers))
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
    return float(weighted_tpr(np.sort(members), u, np.sort(nonmembers), v, alpha)[0])


def threshold_at_fpr(nonmembers: Floats, alpha: float) -> float:
    """Score above which at most `alpha` of the non-members are: what is higher is called a member.

    Parameters
    ----------
    nonmembers
        Scores, float[n], not empty.
    """
    allowed = math.floor(alpha * nonmembers.size + 1e-9)
    return float(np.sort(nonmembers)[::-1][min(allowed, nonmembers.size - 1)])


def permuted(values: NDArray[Any], draws: int, rng: np.random.Generator) -> Iterator[NDArray[Any]]:
    """`draws` permutations of `values`, (n,); arrays (part, n), each of at most 16 MB of float64."""
    for size in chunks(draws, values.size):
        yield rng.permuted(np.broadcast_to(values, (size, values.size)), axis=1)


def ranks(values: Floats, ordered: Floats) -> tuple[Ints, Ints]:
    """How many of `ordered`, ascending, are below each value, and how many are not above it; same shape."""
    return np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")


def codes_of(documents: Ints) -> Ints:
    """Number documents 0, 1, 2 ... in the order of their ids; same shape."""
    return np.unique(documents, return_inverse=True)[1]


def chunks(draws: int, width: int) -> Iterator[int]:
    """Sizes of parts of `draws`, so that a matrix of a part and `width` has at most 16 MB of float64."""
    size = max(1, 2_000_000 // width)
    yield from (min(size, draws - start) for start in range(0, draws, size))


def weighted_tpr(members: Floats, u: Floats, nonmembers: Floats, v: Floats, alpha: float) -> Floats:
    """`tpr_at_fpr` with weights u[draws, m] and v[draws, n]; scores must be ascending.

    Counted from the highest score down, the first non-member whose weight exceeds `alpha` must be at or below the
    threshold.
    """
    from_top = v[:, ::-1].cumsum(axis=1)
    breaks = np.argmax(from_top > alpha * from_top[:, -1:] + 1e-9, axis=1)
    barred = np.searchsorted(members, nonmembers[::-1][breaks], "right")
    from_bottom = np.concatenate([np.zeros((len(u), 1)), u.cumsum(axis=1)], axis=1)
    return np.asarray(1 - from_bottom[np.arange(len(u)), barred] / from_bottom[:, -1])
