"""Curves fitted to a metric, as a second line: their asymptote is only stated when the fit passes two tests.

A fit that passes certifies nothing: with noisy values, a wrong form passes too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eval.saturation.curve import Curve
from eval.saturation.runs_test import runs_p
from eval.separation import Floats

LEVEL = 0.01
"""Significance level of each of the two tests of a fit."""
PASSED, REFUSED, NO_FIT = "passed", "refused", "no fit"


@dataclass(frozen=True, kw_only=True)
class Form:
    """A family of curves level + shape(t, *parameters)."""

    name: str
    shape: Callable[..., Floats]
    """Function of log t, float64[k], and the parameters."""
    starts: Callable[[Floats, float], list[list[float]]]
    """Function of log t and the change from the first to the last mean: where the search of the parameters begins."""
    lower: tuple[float, ...]
    """Smallest values of the parameters."""
    at_infinity: Callable[..., float]
    """Limit of `shape` for large t."""


def _power(log_t: Floats, a: float, alpha: float) -> Floats:
    """A (t / t_0)^-alpha, the part of L + A t^-alpha that changes."""
    return np.asarray(a * np.exp(-alpha * (log_t - log_t[0])))


def _logistic(log_t: Floats, height: float, slope: float, middle: float) -> Floats:
    """H / (1 + exp(-s (log t - c)))."""
    return np.asarray(height / (1 + np.exp(np.clip(-slope * (log_t - middle), -700, 700))))


FORMS = {
    "power": Form(
        name="power",
        shape=_power,
        starts=lambda log_t, change: [[-change / (1 - np.exp(-a * np.ptp(log_t))), a] for a in (0.1, 0.5, 1.5)],
        lower=(-np.inf, 1e-6),
        at_infinity=lambda a, alpha: 0.0,
    ),
    "logistic": Form(
        name="logistic",
        shape=_logistic,
        starts=lambda log_t, change: [
            [change, 4 / np.ptp(log_t), float(np.quantile(log_t, share))] for share in (0.25, 0.5, 0.75)
        ],
        lower=(-np.inf, 1e-6, -np.inf),
        at_infinity=lambda height, slope, middle: height,
    ),
}
"""Name -> form: `power` for losses, `logistic` for shares such as accuracies."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A fitted curve and its tests. All numbers are NaN where there is no fit."""

    form: str
    verdict: str
    """`passed`, `refused`, or `no fit`."""
    reason: str
    """Why it was refused or not made; empty when it passed."""
    chi2: float = np.nan
    """Reduced chi-square of the residuals."""
    chi2_p: float = np.nan
    runs_p: float = np.nan
    asymptote: float = np.nan
    """Limit of the curve; NaN unless the fit passed."""
    ci_low: float = np.nan
    ci_high: float = np.nan
    """95% Wald interval of the asymptote; NaN unless the fit passed."""


def fit(curve: Curve, form: Form) -> Fit:
    """Fit `form` to the means of a metric over log t; step 0 is left out.

    The means of the items are removed first, so the error does not include their differences: means and covariance are
    projected on the differences between checkpoints, where the level of the curve has no effect. Weights, chi-square
    and runs test use this covariance. Since it is an estimate from c documents, chi-square is compared with Hotelling's
    distribution instead of its own.
    """
    from scipy.special import fdtrc  # scipy.stats takes a second to load

    after = curve.steps > 0
    k, n_parameters, c = int(after.sum()), len(form.lower), curve.n_documents
    degrees = k - 1 - n_parameters
    if degrees < 2:
        return _none(form, f"needs {n_parameters + 3} checkpoints after step 0, there are {k}")
    if c < 2 * k:
        return _none(form, f"needs {2 * k} documents for {k} checkpoints, there are {c}")
    log_t, means = np.log(curve.steps[after]), curve.means[after]
    basis = _differences(k)
    covariance = basis @ curve.covariance[np.ix_(after, after)] @ basis.T
    if np.linalg.matrix_rank(covariance) < k - 1:
        return _none(form, "two checkpoints have the same values")
    best = _search(form, log_t, basis, basis @ means, covariance)
    if best is None:
        return _none(form, "the search does not converge")
    parameters, errors, chi2 = best
    residuals = basis.T @ (basis @ (means - form.shape(log_t, *parameters)))
    p = float(fdtrc(degrees, c - degrees, chi2 * (c - degrees) / ((c - 1) * degrees)))
    tests = {"chi2": chi2 / degrees, "chi2_p": p, "runs_p": runs_p(residuals)}
    bad = [name for name, value in (("chi-square", p), ("runs test", tests["runs_p"])) if value < LEVEL]
    if bad:
        return Fit(form=form.name, verdict=REFUSED, reason=" and ".join(bad), **tests)
    return Fit(form=form.name, verdict=PASSED, reason="", **tests, **_asymptote(form, log_t, means, parameters, errors))


def _none(form: Form, reason: str) -> Fit:
    return Fit(form=form.name, verdict=NO_FIT, reason=reason)


def _differences(k: int) -> Floats:
    """Orthonormal rows that add up to 0, float64[k - 1, k]."""
    from scipy.linalg import null_space

    return np.asarray(null_space(np.ones((1, k))).T)


def _search(
    form: Form, log_t: Floats, basis: Floats, target: Floats, covariance: Floats
) -> tuple[Floats, Floats, float] | None:
    """Parameters with the lowest chi-square, their covariance, and that chi-square; None without any."""
    from scipy.optimize import OptimizeWarning, curve_fit

    def shape(_: Floats, *parameters: float) -> Floats:
        return np.asarray(basis @ form.shape(log_t, *parameters))

    centered = basis.T @ target
    change = float(centered[-1] - centered[0])
    best: tuple[Floats, Floats, float] | None = None
    for start in form.starts(log_t, change):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", OptimizeWarning)
                parameters, errors = curve_fit(
                    shape, log_t, target, start, covariance, absolute_sigma=True, bounds=(form.lower, np.inf)
                )
        except (RuntimeError, OptimizeWarning):  # no convergence, or parameters without a covariance
            continue
        residual = target - shape(log_t, *parameters)
        chi2 = float(residual @ np.linalg.solve(covariance, residual))
        if best is None or chi2 < best[2]:
            best = parameters, errors, chi2
    return best


def _asymptote(form: Form, log_t: Floats, means: Floats, parameters: Floats, errors: Floats) -> dict[str, float]:
    """The limit of the curve and its 95% Wald interval, for these items: their means count as known."""

    def limit(values: Floats) -> float:
        return float(means.mean() - form.shape(log_t, *values).mean() + form.at_infinity(*values))

    moves = np.maximum(np.abs(parameters), 1e-3) * 1e-5
    gradient = np.array(
        [
            (limit(parameters + move) - limit(parameters - move)) / (2 * size)
            for size, move in zip(moves, np.diag(moves), strict=True)
        ]
    )
    value, error = limit(parameters), float(np.sqrt(gradient @ errors @ gradient))
    return {"asymptote": value, "ci_low": value - 1.96 * error, "ci_high": value + 1.96 * error}
