"""What a number can show: p-values by permutation or closed form, Holm's correction, the smallest detectable AUC."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from eval.separation import Floats, Ints, codes_of

POWER = 0.8
"""Probability with which the smallest detectable AUC is detected."""
LEVEL = 0.05
"""Two-sided level of the test that detects it."""


class TooFew(ValueError):
    """A test has too few documents."""


def permutation_p(observed: float, permuted: Floats) -> float:
    """p-value of a permutation test that rejects large values: (1 + #{permuted >= observed}) / (1 + draws).

    Davison & Hinkley 1997, section 4.3. Differences below 1e-9 are rounding and count as ties.

    Parameters
    ----------
    permuted
        The statistic in draws of the null hypothesis, float64[draws].
    """
    return float((1 + (permuted >= observed - 1e-9).sum()) / (1 + permuted.size))


def holm(p_values: Floats) -> Floats:
    """p-values corrected for the number of tests, float64[n], in the same order (Holm 1979).

    The i-th smallest of n is multiplied by n - i + 1; then each is at least as large as those of smaller p-values,
    and at most 1.

    Raises
    ------
    ValueError
        When a p-value is not between 0 and 1.
    """
    if not ((p_values >= 0) & (p_values <= 1)).all():
        raise ValueError("a p-value is not between 0 and 1")
    order = np.argsort(p_values)
    stepped = np.maximum.accumulate(p_values[order] * np.arange(p_values.size, 0, -1))
    corrected = np.empty(p_values.size)
    corrected[order] = np.minimum(stepped, 1)
    return corrected


def rank_sum_p(members: Floats, nonmembers: Floats, member_documents: Ints, nonmember_documents: Ints) -> float:
    """Two-sided p-value of AUC = 0.5, for samples that are independent between documents, by normal approximation.

    The AUC minus 0.5 is a sum over documents: of the mid-ranks of their samples among all samples, centered, each
    divided by the number of samples of its side, and negative for non-members. With one sample per document its
    variance over all permutations of the labels is known exactly (Hájek 1960): this is the Mann-Whitney test with
    correction for ties and without one for continuity. Documents with several samples cannot be exchanged, since one
    side may have only some samples of each. There the variance is the sum of squares over documents, with the factor
    C / (C - 1) for C documents: the clustered variance of Obuchowski 1997, at the null hypothesis, where placement
    values are ranks among all samples. It includes the covariance of the two sides of a document that is on both.

    Parameters
    ----------
    members, nonmembers
        Scores, float64[m] and float64[n]; infinite ones are ranked too.
    member_documents, nonmember_documents
        Document of each sample, int64[m] and int64[n].

    Returns
    -------
    float
        1.0 when all scores are equal, a side is empty, or there is only one document.
    """
    from scipy.stats import norm, rankdata

    m, n = members.size, nonmembers.size
    documents = codes_of(np.concatenate([member_documents, nonmember_documents]))
    n_documents = np.unique(documents).size
    if n_documents < 2 or not m or not n:
        return 1.0
    ranks = rankdata(np.concatenate([members, nonmembers]))
    if n_documents == m + n:
        ordered, total = ranks[np.argsort(documents)], float((ranks[:m] - ranks.mean()).sum())
        variance = (m + n) * (m / (m + n)) * (1 - m / (m + n)) * float(ordered.var(ddof=1))
    else:
        sums = np.bincount(documents, weights=(ranks - ranks.mean()) * np.repeat([1 / m, -1 / n], [m, n]))
        total, variance = float(sums.sum()), float((sums**2).sum()) * n_documents / (n_documents - 1)
    return float(2 * norm.sf(abs(total) / math.sqrt(variance))) if variance > 0 else 1.0


def detectable_auc(n_members: int, n_nonmembers: int) -> float | None:
    """Smallest AUC above 0.5 that a two-sided test at `LEVEL` distinguishes from 0.5 with probability `POWER`.

    Standard errors of an AUC at 0.5 and at the alternative are those of Hanley & McNeil 1982 (exponential scores), the
    sample size is theirs. An AUC below it that is "not significant" shows nothing.

    Parameters
    ----------
    n_members, n_nonmembers
        Independent observations of both sides: documents.

    Returns
    -------
    float or None
        None when even an AUC of 1 would not be significant.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    z_level, z_power = norm.isf(LEVEL / 2), norm.ppf(POWER)
    at_chance = _standard_error(0.5, n_members, n_nonmembers)

    def excess(auc: float) -> float:
        return auc - 0.5 - float(z_level) * at_chance - float(z_power) * _standard_error(auc, n_members, n_nonmembers)

    solve: Callable[..., float] = brentq
    return float(solve(excess, 0.5, 1.0, xtol=1e-6)) if excess(1.0) >= 0 else None


def _standard_error(auc: float, m: int, n: int) -> float:
    """Standard error of an AUC by Hanley & McNeil 1982."""
    first, second = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (m - 1) * (first - auc**2) + (n - 1) * (second - auc**2)
    return math.sqrt(max(0.0, variance) / (m * n))
