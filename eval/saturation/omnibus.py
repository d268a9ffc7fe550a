"""Does a metric change at all over the checkpoints of a run? One test over all of them, and its power."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from eval.saturation.curve import Curve
from eval.separation import Floats

DRAWS = 1999
"""Number of random signs for each document."""
MATTERS = 0.2
"""Change from first to last checkpoint that matters, in standard deviations between items (small in Cohen 1988)."""


@dataclass(frozen=True)
class Omnibus:
    """Result of the test that all means are the same."""

    p: float
    power: float
    """Probability that the test detects a change that matters, in a straight line from first to last checkpoint."""


def omnibus(curve: Curve, *, level: float, seed: int) -> Omnibus:
    """Test whether the mean of a metric is the same at all checkpoints, by random signs of whole documents.

    The mean over the checkpoints is removed from each item. If no mean changes, the sums of a document are then
    symmetric around 0, whatever the covariance between checkpoints is; so multiplying them by a random sign gives
    another possible outcome (the wild cluster bootstrap of Cameron, Gelbach & Miller 2008). The statistic is the sum
    over checkpoints of (sum over documents)^2 / (sum of squares over documents).

    Parameters
    ----------
    level
        Significance level at which the power is computed.
    """
    deviations = curve.sums - curve.sums.mean(axis=1, keepdims=True)
    scale = np.abs(curve.values).max() * 1e-12  # below it, a difference is an error of rounding
    deviations[np.abs(deviations) <= scale * curve.sizes[:, None]] = 0
    squares = (deviations**2).sum(axis=0)
    if not squares.any():  # every item has the same value at every checkpoint
        return Omnibus(p=1.0, power=1.0)
    chance = _signs(curve.n_documents, seed) @ deviations
    null = _statistic(chance, squares)
    observed = _statistic(deviations.sum(axis=0), squares)
    p = (1 + int((null >= observed * (1 - 1e-12)).sum())) / (1 + DRAWS)
    matters = MATTERS * curve.spread * _ramp(curve)
    shifted = _statistic(chance + curve.n * matters, squares)
    return Omnibus(p=p, power=float((shifted > np.quantile(null, 1 - level)).mean()))


@lru_cache(maxsize=4)  # the metrics of a run have the same documents
def _signs(n_documents: int, seed: int) -> Floats:
    """Random signs, float64[DRAWS, c]."""
    return np.random.default_rng(seed).choice([-1.0, 1.0], (DRAWS, n_documents))


def _statistic(sums: Floats, squares: Floats) -> Floats:
    """The statistic for sums over documents, float64[..., k]."""
    return np.asarray(np.divide(sums**2, squares, out=np.zeros_like(sums), where=squares > 0).sum(axis=-1))


def _ramp(curve: Curve) -> Floats:
    """A straight line over the checkpoints that rises by 1 and has the mean 0, float64[k]."""
    line = np.linspace(0, 1, curve.steps.size)
    return np.asarray(line - line.mean(), dtype=np.float64)
