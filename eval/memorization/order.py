"""Is what is read late memorized more? Poisson regression of memorized counts on the true order of reading.

The time of a sample is the rank of the batch of its last reading, from 0 (the first one) to 1 (the last); the samples
of one batch have one time, the mean of their ranks. The unit is a document: its memorized samples are a count, and its
time t is the mean over its samples. Units with the same number of copies, of drawn samples and of readings form a
stratum s, with log E[count] = log(samples) + alpha_s + beta t. Given the total of each stratum the counts are
multinomial, so the alpha_s drop out (Cameron & Trivedi 2013, section 9.3). exp(beta) is the rate at the end of the
order divided by the rate at its start.

p comes from permutations of the counts within strata, which a random order makes exact, whatever the counts are:
the statistic is the score of beta at 0, sum of count * (t - mean t of the stratum), two-sided.

The published view divides the samples into blocks of equal size by the order of reading, and is a Q-Q plot of the
counts of the blocks against a Poisson distribution (Biderman et al. 2023). Nothing orders the samples of one batch, so
a batch that is in two blocks is divided at random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.separation import Floats, Ints, codes_of, permuted
from eval.statistics import LEVEL, POWER, TooFew, permutation_p

BLOCKS = 20
"""Blocks of samples, of nearly equal size, in the order of reading."""
PER_BLOCK = 5
"""Fewest samples of a block; there are fewer blocks where samples are few."""
FEWEST = 10
"""Documents that can be exchanged, at least."""
PERMUTATIONS = 999
ROUNDS = 100
"""Steps of Newton's method after which there is no maximum: all memorized samples are at one end."""
LEAST_INFORMATION = 1e-4
"""With less, the standard error of beta is above 100: no ratio of rates could be detected, or written as a number."""


@dataclass(frozen=True)
class Trend:
    """How the rate of memorized samples depends on when they were read."""

    beta: float | None
    """Log of rate at the end / rate at the start; None where the likelihood has no maximum."""
    stderr: float | None
    p: float
    """Two-sided p-value of beta = 0, by permutation within strata."""
    counts: Ints
    """Memorized samples of each block, int64[blocks]."""
    sizes: Ints
    """Samples of each block, int64[blocks]."""
    information: float
    """Fisher information of beta at 0: its standard error there is 1 / its root."""
    n: int
    """Number of samples."""
    documents: int
    """Number of documents that can be exchanged with another one."""

    @property
    def detectable(self) -> float:
        """Smallest exp(beta) above 1 that a two-sided test at 5% detects with probability 80%."""
        return math.exp(_effect() / math.sqrt(self.information))

    @property
    def power_of_plot(self) -> float:
        """Probability that the counts of the blocks deviate from a Poisson distribution at 5% if beta is detectable.

        The deviation that a Q-Q plot shows is tested by the index of dispersion, sum of (count - mean)^2 / mean, which
        is chi-squared with blocks - 1 degrees of freedom, and non-central under the alternative, with the sum of
        (expected - mean)^2 / mean (Fisher 1950). To first order in beta this is beta^2 * information.
        """
        from scipy.stats import chi2, ncx2

        free = self.counts.size - 1
        return float(ncx2.sf(chi2.isf(LEVEL, free), free, _effect() ** 2))


def _effect() -> float:
    """Standard errors between 0 and an effect that is detected with probability `POWER`: 2.80."""
    from scipy.stats import norm

    return float(norm.isf(LEVEL / 2) + norm.ppf(POWER))


def trend(memorized: Floats, last_read: Ints, times: Ints, copies: Ints, documents: Ints, *, seed: int = 0) -> Trend:
    """Test whether memorized counts depend on the time of reading.

    Parameters
    ----------
    memorized
        1.0 or 0.0 for each sample, float64[n].
    last_read, times
        Batch of the last reading, and number of readings, int64[n].
    copies
        Number of trainable samples of its document, int64[n].
    documents
        Document of each sample, int64[n].

    Raises
    ------
    TooFew
        When no sample is memorized, or fewer than `FEWEST` documents can be exchanged, or those that can be exchanged
        with memorized ones were read at the same time.
    """
    blocks = _blocks(last_read, seed)
    units = codes_of(documents)
    sizes = np.bincount(units)
    counts: Floats = np.bincount(units, weights=memorized).astype(np.float64)
    time = np.bincount(units, weights=_times(last_read)) / sizes
    readings = np.bincount(units, weights=times).astype(np.int64)
    of_unit = np.zeros(sizes.size, dtype=np.int64)
    of_unit[units] = copies
    keys = np.stack([of_unit, sizes, readings])
    strata = _strata(keys)
    exchangeable = sum(stratum.size for stratum in strata)
    if exchangeable < FEWEST:
        raise TooFew(f"training order needs {FEWEST} documents that can be exchanged, not {exchangeable}")
    if not sum(counts[stratum].sum() for stratum in strata):
        raise TooFew("no read sample is memorized, so training order cannot be tested")
    pairs = [(time[stratum], counts[stratum]) for stratum in strata]
    information = _derivatives(pairs, 0.0)[1]
    if information < LEAST_INFORMATION:
        raise TooFew("training order needs memorized samples among others that were read at another time")
    beta, stderr = _fit(pairs)
    return Trend(
        beta=beta,
        stderr=stderr,
        p=_p(pairs, seed),
        counts=np.bincount(blocks, weights=memorized).astype(np.int64),
        sizes=np.bincount(blocks),
        information=information,
        n=int(memorized.size),
        documents=exchangeable,
    )


def _times(last_read: Ints) -> Floats:
    """Rank of the batch of each sample, from 0 (first batch) to 1 (last); samples of a batch have their mean rank."""
    from scipy.stats import rankdata

    ranks = rankdata(last_read)
    return np.asarray((ranks - ranks.min()) / max(1.0, float(np.ptp(ranks))))


def _blocks(last_read: Ints, seed: int) -> Ints:
    """Block of each sample, from 0: equal numbers of samples, in the order of reading, at random within a batch."""
    number = max(1, min(BLOCKS, last_read.size // PER_BLOCK))
    place = np.empty(last_read.size, dtype=np.int64)
    place[np.lexsort((np.random.default_rng(seed).random(last_read.size), last_read))] = np.arange(last_read.size)
    return np.asarray(place * number // max(1, last_read.size))


def _strata(keys: Ints) -> list[Ints]:
    """Units with equal keys, of each with at least two units."""
    codes = np.unique(keys, axis=1, return_inverse=True)[1].ravel()
    groups = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    return [group for group in groups if group.size > 1]


def _derivatives(pairs: list[tuple[Floats, Floats]], beta: float) -> tuple[float, float]:
    """Score and information of beta, over strata of (times, counts)."""
    score = information = 0.0
    for time, counts in pairs:
        weights = np.exp(beta * (time - time.mean()))
        weights /= weights.sum()
        mean = float(weights @ time)
        score += float(counts @ (time - mean))
        information += float(counts.sum()) * float(weights @ (time - mean) ** 2)
    return score, information


def _fit(pairs: list[tuple[Floats, Floats]]) -> tuple[float | None, float | None]:
    """The conditional maximum likelihood estimate of beta, and its standard error; None where there is none."""
    beta = 0.0
    for _ in range(ROUNDS):
        score, information = _derivatives(pairs, beta)
        if information < LEAST_INFORMATION or abs(beta) > ROUNDS:
            return None, None
        step = score / information
        beta += max(-1.0, min(1.0, step))
        if abs(step) < 1e-9:
            return beta, 1 / math.sqrt(information)
    return None, None


def _p(pairs: list[tuple[Floats, Floats]], seed: int) -> float:
    rng, draws, observed = np.random.default_rng(seed), np.zeros(PERMUTATIONS), 0.0
    for time, counts in pairs:
        centered = time - time.mean()
        observed += float(counts @ centered)
        draws += np.concatenate([part @ centered for part in permuted(counts, PERMUTATIONS, rng)])
    return permutation_p(abs(observed), np.abs(draws))


def rows(test: Trend) -> list[tuple[str, dict[str, Any]]]:
    """Metric and row of each number of a test."""
    results: list[tuple[str, dict[str, Any]]] = [("order_p", {"value": test.p, "n": test.n})]
    if test.beta is not None and test.stderr is not None:
        ends = [math.exp(test.beta + sign * 1.96 * test.stderr) for sign in (-1, 1)]
        ratio = math.exp(test.beta)
        row = {"value": ratio, "stderr": ratio * test.stderr, "ci_low": ends[0], "ci_high": ends[1], "n": test.n}
        results.append(("order_ratio", row))
    results.append(("order_detectable", {"value": test.detectable, "n": test.n}))
    results.append(("order_plot_power", {"value": test.power_of_plot, "n": test.n}))
    return results
