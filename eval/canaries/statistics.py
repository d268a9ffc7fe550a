"""Tests of canaries against controls of the same draw: exact, because before training all of them are exchangeable."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from eval.separation import Floats, Ints
from eval.statistics import permutation_p

DRAWS = 9999
"""Redraws of which texts are the canaries."""
AT_ONCE = 500
"""Redraws that are in memory at once."""


def p_values(canaries: Floats, controls: Floats) -> Floats:
    """Exact p-value of each canary: (1 + #{controls that score at least as high}) / (1 + #controls), float64[n].

    Parameters
    ----------
    canaries, controls
        Scores, float64[n] and float64[N], higher where the model knows a text better.
    """
    ordered = np.sort(controls)
    at_least = controls.size - np.searchsorted(ordered, canaries, side="left")
    return np.asarray((1 + at_least) / (1 + controls.size))


def exposure(p: Floats) -> Floats:
    """Exposure in bits, log2 |R| - log2 rank (Carlini et al. 2019), for R the canary and the controls, float64[n]."""
    return -np.log2(p)


def combined_p(canaries: Floats, controls: Floats, seed: int, draws: int = DRAWS) -> float:
    """p-value of Fisher's statistic -2 sum log p of all canaries together.

    The p-values share their controls and have few values, so the chi-squared distribution of Fisher 1925 does not hold.
    Its place takes the permutation distribution: which of the n + N texts are the canaries is redrawn, as at
    preparation.
    """
    n, scores = canaries.size, np.concatenate([canaries, controls])
    _, codes = np.unique(scores, return_inverse=True)
    statistic = fisher(codes[None, :n], codes, controls.size)[0]
    statistics = [fisher(codes[choice], codes, controls.size) for choice in _choices(scores.size, n, draws, seed)]
    return permutation_p(float(statistic), np.concatenate(statistics))


def fisher(choices: Ints, codes: Ints, n_controls: int) -> Floats:
    """Fisher's statistic of several choices of canaries, float64[choices].

    Parameters
    ----------
    choices
        Code of each chosen text, int64[choices, n]; a higher code is a higher score, and equal ones tie.
    codes
        Code of every text, int64[n + N].
    """
    at_least = codes.size - np.searchsorted(np.sort(codes), choices, side="left")
    ordered = np.sort(choices, axis=1)
    width = int(codes.max()) + 1
    rows = np.arange(len(choices))[:, None]
    places = np.searchsorted((ordered + rows * width).ravel(), (choices + rows * width).ravel(), side="left")
    among_choice = choices.shape[1] - (places.reshape(choices.shape) - rows * choices.shape[1])
    return np.asarray(-2 * np.log((1 + at_least - among_choice) / (1 + n_controls)).sum(axis=1))


def _choices(n: int, size: int, draws: int, seed: int) -> Iterator[Ints]:
    """Random choices of `size` of `n` texts without replacement, int64[some, size], `draws` in total."""
    rng = np.random.default_rng(seed)
    for start in range(0, draws, AT_ONCE):
        keys = rng.random((min(AT_ONCE, draws - start), n), dtype=np.float32)
        yield np.argpartition(keys, size - 1, axis=1)[:, :size]


def exact_share(count: int, n: int) -> dict[str, float]:
    """Share of `count` of `n`, with the exact 95% interval of Clopper & Pearson 1934."""
    from scipy.stats import binomtest

    interval = binomtest(count, n).proportion_ci(0.95, "exact")
    return {"value": count / n, "ci_low": float(interval.low), "ci_high": float(interval.high)}
