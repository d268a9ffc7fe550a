"""The runs test of Wald and Wolfowitz 1940: are the signs of residuals in random order?"""

from __future__ import annotations

from math import comb

import numpy as np

from eval.separation import Floats


def runs_p(residuals: Floats) -> float:
    """Probability of as few runs of equal signs as in `residuals`, float64[k], or fewer, if their order is random.

    Exact, given the numbers of positive and negative residuals; zeros are left out. Few runs mean that a curve misses
    its points in a systematic way.
    """
    signs = np.sign(residuals[residuals != 0])
    runs = 1 + int((np.diff(signs) != 0).sum())
    a, b = int((signs > 0).sum()), int((signs < 0).sum())
    if not a or not b:  # one run is all that there can be
        return 1.0
    return sum(_ways(a, b, count) for count in range(2, runs + 1)) / comb(a + b, a)


def _ways(a: int, b: int, runs: int) -> int:
    """Number of orders of `a` positive and `b` negative signs with this number of runs."""
    half = runs // 2
    if runs % 2 == 0:
        return 2 * comb(a - 1, half - 1) * comb(b - 1, half - 1)
    return comb(a - 1, half) * comb(b - 1, half - 1) + comb(a - 1, half - 1) * comb(b - 1, half)
