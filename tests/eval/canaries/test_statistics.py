"""p-values of canaries: by hand, against brute force, and uniform when nothing was read."""

from __future__ import annotations

from itertools import combinations
from math import log

import numpy as np
import pytest
from scipy.stats import kstest

from eval.canaries.statistics import combined_p, exact_share, exposure, fisher, p_values


def test_p_values_by_hand() -> None:
    p = p_values(np.array([5.0, 3.0, 0.0, -9.0]), np.array([4.0, 3.0, 1.0]))
    assert p.tolist() == [1 / 4, 3 / 4, 1, 1]  # a tie counts as higher
    assert exposure(p).tolist() == pytest.approx([2, -np.log2(0.75), 0, 0])
    assert p_values(np.array([1.0]), np.array([np.inf, 0.0])).tolist() == [2 / 3]


def brute_force(scores: list[float], choice: list[int]) -> float:
    controls = [score for i, score in enumerate(scores) if i not in choice]
    ps = [(1 + sum(c >= scores[i] for c in controls)) / (1 + len(controls)) for i in choice]
    return -2 * sum(log(p) for p in ps)


def test_the_statistic_equals_brute_force() -> None:
    scores = [3.0, 1.0, 3.0, 2.0, 0.0, 2.0, 5.0]
    _, codes = np.unique(scores, return_inverse=True)
    choices = [list(each) for each in combinations(range(7), 3)]
    actual = fisher(codes[np.array(choices)], codes, 4)
    assert actual == pytest.approx([brute_force(scores, each) for each in choices])


def test_the_combined_p_equals_all_choices() -> None:
    """Of 20 choices of 3 of 6 texts, the exact p is a multiple of 1/20; 9,999 redraws are within 4 standard errors."""
    scores = np.array([2.5, 4.0, 0.5, 3.0, 1.0, 2.0])
    observed = brute_force(scores.tolist(), [0, 1, 2])
    all_of_them = [brute_force(scores.tolist(), list(each)) for each in combinations(range(6), 3)]
    exact = np.mean([each >= observed - 1e-9 for each in all_of_them])
    assert combined_p(scores[:3], scores[3:], seed=0) == pytest.approx(
        exact, abs=4 * (exact * (1 - exact) / 9999) ** 0.5
    )


def test_p_values_are_uniform_when_nothing_was_read() -> None:
    """400 draws of 8 canaries and 19 controls from one distribution; a false failure has a probability of .001."""
    rng = np.random.default_rng(0)
    ps = [combined_p(*np.split(rng.normal(size=27), [8]), seed=i, draws=199) for i in range(400)]
    assert kstest(ps, "uniform").pvalue > 0.001


def test_a_remembered_dose_is_found() -> None:
    rng = np.random.default_rng(1)
    assert combined_p(rng.normal(3, 1, 8), rng.normal(0, 1, 999), seed=0) == 1e-4
    assert combined_p(rng.normal(-3, 1, 8), rng.normal(0, 1, 999), seed=0) > 0.99


def test_the_interval_of_a_share() -> None:
    assert exact_share(0, 8) == {"value": 0, "ci_low": 0, "ci_high": pytest.approx(1 - 0.025 ** (1 / 8))}
    assert exact_share(8, 8) == {"value": 1, "ci_low": pytest.approx(0.025 ** (1 / 8)), "ci_high": 1}
