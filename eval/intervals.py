"""Uncertainty of results: intervals from bootstrap draws, and standard errors of means over documents."""

from __future__ import annotations

import math

import numpy as np

from eval.separation import Floats, Ints, codes_of

LEVEL = 0.05
"""One minus the level of an upper limit."""


def spread(draws: Floats) -> dict[str, float]:
    """Standard error and 95% interval of a statistic, from its values in bootstrap draws, float64[draws]."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"stderr": float(draws.std(ddof=1)), "ci_low": float(low), "ci_high": float(high)}


def upper_limit(n: int) -> float:
    """Largest rate at which 0 of `n` independent units have something with a probability of at least `LEVEL`."""
    return 1 - math.pow(LEVEL, 1 / n)


def clustered_share(values: Floats, documents: Ints) -> dict[str, float]:
    """Mean of values between 0 and 1 with its interval, clustered by document.

    The exact binomial interval of Clopper & Pearson for an effective number of independent values, from the clustered
    standard error and its degrees of freedom (Korn & Graubard 1998). It holds for rare events, where mean and standard
    error do not. If all values are 0 or all are 1, residuals say nothing; then the interval is the one-sided exact
    limit of 0 of n documents: those of one document may all be equal, so they count as one. An interval of values that
    are 0 or 1 is never narrower than that.
    """
    mean, limit = float(values.mean()), upper_limit(np.unique(documents).size)
    if (values == 0).all():
        return {"value": mean, "ci_low": 0.0, "ci_high": limit}
    if (values == 1).all():
        return {"value": mean, "ci_low": 1 - limit, "ci_high": 1.0}
    row = clustered_mean(values, documents)
    if "stderr" not in row:
        return row
    events = bool(np.isin(values, (0, 1)).all())
    low, high = _exact(mean, _effective(row, values.size, np.unique(documents).size, most=events))
    return row | {"ci_low": min(low, 1 - limit) if events else low, "ci_high": max(high, limit) if events else high}


def _effective(row: dict[str, float], n: int, documents: int, *, most: bool) -> float:
    """Number of independent values with this mean and standard error; with `most`, n at most."""
    from scipy.stats import t

    if not row["stderr"]:
        return n
    design = (t.ppf(0.975, n - 1) / t.ppf(0.975, documents - 1)) ** 2
    size = float(row["value"] * (1 - row["value"]) / row["stderr"] ** 2 * design)
    return min(size, n) if most else size


def _exact(mean: float, n: float) -> tuple[float, float]:
    """95% interval of Clopper & Pearson for a share of `n` values, which need not be a whole number."""
    from scipy.stats import beta

    count = mean * n
    return float(beta.ppf(0.025, count, n - count + 1)), float(beta.ppf(0.975, count + 1, n - count))


def linearized(totals: Floats, sizes: Floats) -> Floats:
    """Values whose mean is the ratio q = sum of `totals` / sum of `sizes`, and whose errors are those of q.

    q + (total - q size) / mean size: the linearization of a ratio (Cochran 1977, section 2.11). A total that differs
    from others only because its size does adds nothing to the error.

    Parameters
    ----------
    totals, sizes
        Of each item, float64[n]; the sizes do not add up to 0.
    """
    ratio = totals.sum() / sizes.sum()
    return np.asarray(ratio + (totals - ratio * sizes) / sizes.mean())


def clustered_mean(values: Floats, documents: Ints) -> dict[str, float]:
    """Mean of `values`, float64[n], with a cluster-robust standard error; without one for a single document.

    The sandwich estimator of Liang & Zeger 1986 for an intercept-only model, with the factor C / (C - 1).

    Parameters
    ----------
    documents
        Document of each value, int64[n].
    """
    mean = float(values.mean())
    residuals = np.bincount(codes_of(documents), weights=values - mean)
    if residuals.size < 2:
        return {"value": mean}
    stderr = math.sqrt(float((residuals**2).sum()) * residuals.size / (residuals.size - 1)) / values.size
    return {"value": mean, "stderr": stderr, "ci_low": mean - 1.96 * stderr, "ci_high": mean + 1.96 * stderr}
