"""Fits on simulated curves, and their tests compared with other computations. Seeds are fixed."""

from collections import Counter
from itertools import pairwise, permutations

import numpy as np
import pytest
from support.curves import RATE, simulated

from eval.saturation.curve import Curve
from eval.saturation.fits import FORMS, Fit, fit
from eval.saturation.runs_test import runs_p


def fits(shape: str, form: str, count: int, *, sd: float) -> list[Fit]:
    return [fit(simulated(shape, sd=sd, seed=seed), FORMS[form]) for seed in range(count)]


def refused(shape: str, count: int, *, sd: float) -> int:
    return Counter(line.verdict for line in fits(shape, "power", count, sd=sd))["refused"]


def covered(shape: str, form: str, plateau: float, *, sd: float) -> float:
    passed = [line for line in fits(shape, form, 60, sd=sd) if line.verdict == "passed"]
    return float(np.mean([line.ci_low <= plateau <= line.ci_high for line in passed]))


def test_asymptotes_with_little_noise() -> None:
    power = fit(simulated("power law", sd=1e-3, seed=1), FORMS["power"])
    assert power.asymptote == pytest.approx(0, abs=0.01)
    logistic = fit(simulated("logistic", sd=1e-3, seed=1), FORMS["logistic"])
    assert logistic.asymptote == pytest.approx(3, abs=0.01)


def test_a_wrong_form_is_refused_unless_noise_hides_it() -> None:
    assert refused("exponential", 5, sd=0.1) == 5
    assert refused("power law", 5, sd=0.1) <= 1


@pytest.mark.long
def test_a_wrong_form_passes_with_noise() -> None:
    """The power of the tests, which docs/evaluation.md states: 100%, 100%, 98%, 24% and 4%."""
    counts = [refused("exponential", 50, sd=sd) for sd in (0.5, 1, 2, 4)]
    assert counts[0] == 50
    assert counts[1] >= 40
    assert 3 <= counts[2] <= 22
    assert counts[3] <= 8


@pytest.mark.long
def test_intervals_cover_only_where_the_form_is_true() -> None:
    assert covered("power law", "power", 0, sd=0.1) >= 0.82
    assert covered("logistic", "logistic", 3, sd=0.1) >= 0.82
    assert covered("exponential", "power", 3 * np.exp(-RATE * 1e9), sd=2) <= 0.2


def test_a_refused_fit_has_no_asymptote() -> None:
    line = fit(simulated("exponential", sd=0.1), FORMS["power"])
    assert (line.verdict, line.reason) == ("refused", "chi-square and runs test")
    assert np.isnan([line.asymptote, line.ci_low, line.ci_high]).all()
    assert line.chi2 > 10


def test_chi_square_is_that_of_differences_between_checkpoints() -> None:
    """Compared with differences to the first checkpoint and the sample covariance of the items."""
    curve = simulated("power law", sd=0.5)
    line = fit(curve, FORMS["power"])
    from scipy.optimize import minimize

    differences = curve.values[:, 1:] - curve.values[:, :1]
    inverse = np.linalg.inv(np.cov(differences.T) / curve.n)
    t = curve.steps / 50.0

    def chi2(parameters: np.ndarray) -> float:
        shape = parameters[0] * t ** -parameters[1]
        residuals = differences.mean(axis=0) - (shape[1:] - shape[0])
        return float(residuals @ inverse @ residuals)

    best = minimize(chi2, [5.0, 0.3], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-9})
    assert line.chi2 * 17 == pytest.approx(best.fun, rel=1e-4)


def test_what_cannot_be_fitted_is_named() -> None:
    few = simulated("power law", sd=0.1, n=30)
    assert fit(few, FORMS["power"]).reason == "needs 40 documents for 20 checkpoints, there are 30"
    short = Curve(metric="m", steps=few.steps[:4], values=few.values[:, :4], documents=few.documents)
    assert fit(short, FORMS["power"]).reason == "needs 5 checkpoints after step 0, there are 4"
    values = few.values[:, :6].copy()
    values[:, 2] = values[:, 3]
    equal = Curve(metric="m", steps=few.steps[:6], values=values, documents=few.documents)
    assert fit(equal, FORMS["power"]).reason == "two checkpoints have the same values"


@pytest.mark.parametrize("signs", ["+-++--+", "+++---", "+-+-+-", "++++-"])
def test_the_runs_test_by_enumeration(signs: str) -> None:
    def runs(order: tuple[str, ...]) -> int:
        return 1 + sum(a != b for a, b in pairwise(order))

    counts = [runs(order) for order in permutations(signs)]
    expected = np.mean([count <= runs(tuple(signs)) for count in counts])
    assert runs_p(np.array([1.0 if sign == "+" else -1.0 for sign in signs])) == pytest.approx(expected, abs=1e-12)


def test_residuals_of_one_sign_say_nothing() -> None:
    assert runs_p(np.array([1.0, 2.0, 0.0, 3.0])) == 1.0
