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
    """Two-sided p-value of AUC = 0.5, for labels that were drawn by document.

    The rank sum is a sum over the members' documents. Over all permutations of the labels among documents its mean and
    variance are known exactly (sampling without replacement), and its distribution is close to normal (Hájek 1960;
    for clusters of samples Rosner, Glynn & Lee 2003). With one sample per document this is the Mann-Whitney test with
    correction for ties and without one for continuity.

    Parameters
    ----------
    members, nonmembers
        Scores, float64[m] and float64[n]; infinite ones are ranked too.
    member_documents, nonmember_documents
        Document of each sample, int64[m] and int64[n]. No document may be on both sides.

    Returns
    -------
    float
        1.0 when all scores are equal, or there is only one document.
    """
    from scipy.stats import norm, rankdata

    ranks = rankdata(np.concatenate([members, nonmembers]))
    documents = codes_of(np.concatenate([member_documents, nonmember_documents]))
    sums = np.bincount(documents, weights=ranks - ranks.mean())
    is_member = np.zeros(sums.size, dtype=bool)
    is_member[documents[: members.size]] = True
    drawn_share = is_member.mean()
    if sums.size < 2 or not 0 < drawn_share < 1:
        return 1.0
    deviation = math.sqrt(sums.size * drawn_share * (1 - drawn_share) * float(sums.var(ddof=1)))
    if deviation == 0:
        return 1.0
    return float(2 * norm.sf(abs(sums[is_member].sum()) / deviation))


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
