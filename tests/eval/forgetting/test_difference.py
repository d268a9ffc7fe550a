"""The difference in differences: by hand, against brute force, and the coverage of its intervals."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from eval.forgetting.curve import fit
from eval.forgetting.difference import Cohort, Sealed, plain_difference, recorded_difference, two_way_variance
from eval.separation import Floats, Ints


def test_by_hand() -> None:
    """Sealed losses fall by exactly 0.5 per unit of log(1 + step); read samples gain 0.2 more."""
    steps = np.repeat(np.arange(20), 3)
    documents = np.arange(60) % 6
    level = np.array([4.0, 5.0, 6.0, 4.5, 5.5, 6.5])
    curve = fit(steps, documents, level[documents] - 0.5 * np.log1p(steps))
    t = 30
    sealed = Sealed(scores=-(level - 0.5 * np.log1p(t)), documents=np.arange(6))
    batches = np.array([2, 2, 9, 15])
    levels = np.array([3.0, 7.0, 4.0, 5.0])
    before = levels - 0.5 * np.log1p(batches)
    gain = np.array([0.1, 0.3, 0.2, 0.2])
    cohort = Cohort(-(levels - 0.5 * np.log1p(t)) + gain, before, batches, np.array([10, 11, 12, 13]))
    result = recorded_difference(cohort, sealed, curve)
    assert result["value"] == pytest.approx(0.2, abs=1e-5)
    # Residuals: -.1, .1, 0, 0. Documents: each its own; batches: the first two share one, where they cancel.
    assert result["stderr"] == pytest.approx(np.sqrt(0.02 / 16 * 4 / 3), rel=1e-3)
    plain = plain_difference(cohort, sealed)
    assert plain["value"] == pytest.approx(cohort.scores.mean() - sealed.scores.mean())


def brute_force(values: Floats, documents: Ints, batches: Ints) -> float:
    """The formula of Cameron, Gelbach & Miller, with loops."""
    residuals, parts = values - values.mean(), []
    for keys in (documents.tolist(), batches.tolist(), list(zip(documents.tolist(), batches.tolist(), strict=True))):
        sums: defaultdict[object, float] = defaultdict(float)
        for key, residual in zip(keys, residuals, strict=True):
            sums[key] += residual
        parts.append(sum(s * s for s in sums.values()) * len(sums) / (len(sums) - 1) / len(values) ** 2)
    return max(parts[0] + parts[1] - parts[2], parts[0], parts[1])


def test_two_way_variance_equals_brute_force() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        n = int(rng.integers(5, 60))
        documents, batches = rng.integers(12, size=n), rng.integers(9, size=n)
        values = rng.normal(size=n) + rng.normal(size=12)[documents] + rng.normal(size=9)[batches]
        expected = brute_force(values, documents, batches)
        assert two_way_variance(values, documents, batches) == pytest.approx(expected)


def test_one_batch_has_no_interval() -> None:
    curve = fit(np.repeat(np.arange(9), 2), np.arange(18) % 4, np.arange(18.0))
    sealed = Sealed(-np.arange(4.0), np.arange(4))
    cohort = Cohort(np.array([-1.0, -2.0]), np.array([1.5, 2.5]), np.array([3, 3]), np.array([7, 8]))
    assert recorded_difference(cohort, sealed, curve).keys() == {"value"}
    assert plain_difference(cohort, sealed).keys() == {"value"}


def drawn_effect(rng: np.random.Generator) -> dict[str, float]:
    """A simulated run of 60 steps with a true effect of 0.1: levels, trends and shocks of steps are random."""
    steps, size, sealed, t = 60, 8, 50, 60
    shocks, falling = rng.normal(scale=0.03, size=steps + 1), 7 - 2 * (1 - np.exp(-np.arange(steps + 1) / 15))

    def losses(level: Floats, slope: Floats, at: Ints) -> Floats:
        noise = rng.normal(scale=0.05, size=len(at))
        return np.asarray(level + slope * np.log1p(at) + falling[at] + shocks[at] + noise)

    level, slope = rng.normal(scale=0.5, size=sealed), rng.normal(scale=0.1, size=sealed)
    at, documents = np.repeat(np.arange(steps + 1), 4), np.arange(4 * (steps + 1)) % sealed
    curve = fit(at, documents, losses(level[documents], slope[documents], at))
    batches = np.repeat(np.arange(steps), size)
    levels, slopes = rng.normal(scale=0.5, size=len(batches)), rng.normal(scale=0.1, size=len(batches))
    before = losses(levels, slopes, batches)
    scores = -losses(levels, slopes, np.full(len(batches), t)) + rng.normal(0.1, 0.1, size=len(batches))
    cohort = Cohort(scores, before, batches, np.arange(1000, 1000 + len(batches)))
    return recorded_difference(cohort, Sealed(-losses(level, slope, np.full(sealed, t)), np.arange(sealed)), curve)


def coverage(count: int) -> float:
    rng = np.random.default_rng(4)
    results = [drawn_effect(rng) for _ in range(count)]
    return float(np.mean([result["ci_low"] <= 0.1 <= result["ci_high"] for result in results]))


def test_intervals_contain_the_true_effect() -> None:
    """30 simulated runs; if the interval has 95%, at least 24 contain it but for one seed in 1,600."""
    assert coverage(30) >= 24 / 30


@pytest.mark.long
def test_intervals_cover_as_they_say() -> None:
    """200 simulated runs: 90% to 99%; with 95% that fails for one seed in 500."""
    assert 0.90 <= coverage(200) <= 0.99
