"""The difference in differences: by hand, against brute force, and the coverage of its intervals."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from eval.forgetting.curve import fit
from eval.forgetting.difference import Cohort, Sealed, plain_difference, recorded_difference, two_way_variance
from eval.separation import Floats, Ints
from wellread.train.rotation import Rotation, measured_steps


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


def drawn_default(rng: np.random.Generator) -> dict[str, float]:
    """A simulated run with a large holdout and default settings, with a true effect of 0.1.

    5,600 steps, checkpoints every 1,000, 256 of 1,000 sealed samples per measurement; all samples are read first in the
    first 700 steps. The levels of documents move at random, the mean loss falls sharply after a warm-up.
    """
    end, sealed, size = 5600, 1000, 400
    checkpoints = {*range(0, end, 1000), end}
    measured = sorted(measured_steps(checkpoints, end, None))
    corpus: Any = SimpleNamespace(n_trainable=0, samples=lambda _: pa.table({"document": np.arange(sealed)}))
    rotation = Rotation(corpus, int(rng.integers(1000)), count=256, measurements=len(measured))
    grid = np.unique([*measured, *range(0, 700, 20)])
    mean = 7.6 - 1.6 * (1 - np.exp(-np.maximum(grid - 6, 0) / 40)) - 0.25 * np.log1p(grid / 60)

    def losses(count: int) -> Floats:
        """Loss of each document at each step of the grid, (count, steps)."""
        moves = rng.normal(scale=0.25 * np.sqrt(np.diff(np.log1p(grid), prepend=0)), size=(count, len(grid)))
        return np.asarray(mean + rng.normal(scale=0.8, size=(count, 1)) + moves.cumsum(1))

    of_sealed, of_read = losses(sealed), losses(size)
    turns = [rotation.take(number) for number in range(len(measured))]
    at, documents = np.repeat(measured, 256), np.concatenate(turns)
    noise = rng.normal(scale=0.05, size=len(at))
    curve = fit(at, documents, of_sealed[documents, np.searchsorted(grid, at)] + noise)
    assert not curve.is_far(np.arange(700)).any()
    batches = rng.choice(grid[grid < 700], size=size)
    before = of_read[np.arange(size), np.searchsorted(grid, batches)] + rng.normal(scale=0.05, size=size)
    scores = rng.normal(0.1, 0.1, size=size) - of_read[:, -1]
    cohort = Cohort(scores, before, batches, np.arange(sealed, sealed + size))
    return recorded_difference(cohort, Sealed(-of_sealed[curve.ids, -1], curve.ids), curve)


RUNS = {"every step": drawn_effect, "default": drawn_default}


def coverage(run: str, count: int) -> float:
    rng = np.random.default_rng(4)
    results = [RUNS[run](rng) for _ in range(count)]
    return float(np.mean([result["ci_low"] <= 0.1 <= result["ci_high"] for result in results]))


@pytest.mark.parametrize("run", RUNS)
def test_intervals_contain_the_true_effect(run: str) -> None:
    """30 simulated runs; if the interval has 95%, at least 24 contain it but for one seed in 1,600."""
    assert coverage(run, 30) >= 24 / 30


@pytest.mark.long
@pytest.mark.parametrize("run", RUNS)
def test_intervals_cover_as_they_say(run: str) -> None:
    """200 simulated runs: 90% to 99%; with 95% that fails for one seed in 500."""
    assert 0.90 <= coverage(run, 200) <= 0.99
