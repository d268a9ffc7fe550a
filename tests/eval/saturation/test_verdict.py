"""Verdicts on simulated curves, whose noise is stated, and their tests compared with other computations.

Seeds are fixed, so these tests either always pass or always fail.
"""

import math
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from support.curves import SHAPES, STEPS, of_sizes, simulated

from bench.saturation import Simulations, lines
from eval.saturation.curve import Curve
from eval.saturation.omnibus import omnibus
from eval.saturation.verdict import Judgment, flat_from, judge, peak


@lru_cache
def judgments(shape: str, count: int, *, sd: float, n: int = 256) -> list[Judgment]:
    return [judge(simulated(shape, sd=sd, n=n, seed=seed), margin=0.05) for seed in range(count)]


def verdicts(shape: str, count: int, *, sd: float, n: int = 256) -> Counter[str]:
    return Counter(judgment.verdict for judgment in judgments(shape, count, sd=sd, n=n))


# -- simulations


EXPECTED = {
    "exponential": ("saturated", 0.98),
    "flat": ("no change", 0.96),
    "power law": ("not reached", 0.98),
    "rise and fall": ("peaked", 0.90),
}
"""Shape -> its verdict, and the share of simulations that must give it; 256 items, SD of the noise 0.1."""


@pytest.mark.parametrize("shape", EXPECTED)
def test_verdicts_of_twenty_simulations(shape: str) -> None:
    verdict, share = EXPECTED[shape]
    assert verdicts(shape, 20, sd=0.1)[verdict] >= share * 20


@pytest.mark.long
@pytest.mark.parametrize("shape", EXPECTED)
def test_verdicts_of_two_hundred_simulations(shape: str) -> None:
    verdict, share = EXPECTED[shape]
    assert verdicts(shape, 200, sd=0.1)[verdict] >= share * 200


@pytest.mark.long
def test_an_exponential_approach_is_dated_within_two_checkpoints_after_the_truth() -> None:
    truth = 300
    steps = [STEPS[judgment.place or 0] for judgment in judgments("exponential", 200, sd=0.1)]
    assert sum(truth <= step <= 400 for step in steps) >= 196  # up to 1% are called peaked


@pytest.mark.long
def test_noise_moves_an_exponential_approach_out_of_the_first_half() -> None:
    """The table of docs/evaluation.md."""
    counts = {sd: verdicts("exponential", 200, sd=sd) for sd in (0.5, 1.0)}
    assert 60 <= counts[0.5]["not reached"] <= 110
    assert counts[1.0]["not reached"] >= 198


@pytest.mark.long
@pytest.mark.minutes(2)
def test_the_table_of_the_docs_is_what_the_bench_prints(root: Path) -> None:
    assert "\n".join(lines(200)) in (root / "docs" / "evaluation.md").read_text()


@pytest.mark.parametrize("paired", [0.1, 0.5])
def test_without_the_rule_a_power_law_would_be_flat_in_the_last_third(paired: float) -> None:
    """The noise as issue 28 states it: the SD of the difference of an item between two checkpoints."""
    curve = simulated("flat", sd=paired / math.sqrt(2))
    assert (curve.values[:, 1:] - curve.values[:, :-1]).std() == pytest.approx(paired, rel=0.02)
    assert min(Simulations("power law", paired, 200).steps_without_rule()) >= 667


@pytest.mark.parametrize("shape", SHAPES)
def test_with_eight_items_nothing_can_be_said(shape: str) -> None:
    assert verdicts(shape, 200, sd=0.1, n=8) == {"cannot tell": 200}


def test_a_flat_metric_with_much_noise_cannot_be_judged() -> None:
    assert verdicts("flat", 10, sd=4) == {"cannot tell": 10}  # a change of 0.2 SD between items is not detected
    assert verdicts("flat", 10, sd=1) == {"no change": 10}


def test_texts_up_to_the_middle_of_a_run_do_not_saturate_a_power_law() -> None:
    """Its step is within half of the run, 500, but not within half of what is compared."""
    for seed in range(20):
        curve = simulated("power law", sd=0.1, seed=seed)
        early = replace(curve, steps=curve.steps[:10], values=curve.values[:, :10])
        place, _ = flat_from(early, 0.05)
        assert place is not None
        assert early.steps[place] == 450
        assert judge(early, margin=0.05).verdict == "not reached"


def test_sizes_of_items_do_not_make_a_change_small() -> None:
    """A fall of .2 where items differ in size: 12 draws. By the SD of the totals it would be `no change` in 11."""
    curves = [of_sizes(0.2, sd=1.5, seed=seed) for seed in range(12)]
    assert "no change" not in {judge(curve, margin=0.05).verdict for curve in curves}
    assert {judge(of_sizes(0, sd=0.1, seed=seed), margin=0.05).verdict for seed in range(4)} == {"no change"}


def test_the_spread_of_a_ratio_by_hand() -> None:
    of: dict[str, Any] = {"metric": "m", "steps": np.arange(2), "documents": np.arange(3)}
    sizes, totals = np.array([1.0, 2, 3]), np.array([[2.0, 4, 6], [3, 4, 5]]).T  # 2 per unit; then 3, 2 and 5 / 3
    curve = Curve(values=totals / 2, item_sizes=sizes, **of)
    assert curve.means == pytest.approx([2, 2])
    assert curve.spread == pytest.approx(np.sqrt((0 + (0.25 + 0 + 0.25) / 2) / 2))
    assert Curve(values=totals / 2, **of).spread == pytest.approx(np.sqrt((1 + 0.25) / 2))
    assert [half.item_sizes.size for half in curve.halves(0)] == [1, 2]


@pytest.mark.long
def test_the_omnibus_test_has_its_level_with_correlated_checkpoints() -> None:
    """A random walk of each item without drift: 400 draws, at most 9 expected below 1%, more has probability 1e-2."""
    rng = np.random.default_rng(0)
    below = 0
    for _ in range(400):
        values = rng.normal(0, 1, (64, 12)).cumsum(axis=1)
        curve = Curve(metric="m", steps=np.arange(12), values=values, documents=np.arange(64) // 2)
        below += omnibus(curve, level=0.01, seed=0).p < 0.01
    assert below <= 9


# -- single tests


def test_the_omnibus_test_of_two_checkpoints_is_a_sign_test_of_differences() -> None:
    curve = simulated("flat", sd=1, n=30)
    pair = Curve(metric="m", steps=np.arange(2), values=curve.values[:, :2], documents=curve.documents)
    difference = pair.values[:, 1] - pair.values[:, 0]
    signs = np.random.default_rng(1).choice([-1, 1], (20_000, 30))
    expected = (np.abs(signs @ difference) >= abs(difference.sum())).mean()
    assert omnibus(pair, level=0.01, seed=0).p == pytest.approx(expected, abs=0.04)  # 3 SE of 1,999 draws


def test_equivalence_is_two_paired_t_tests() -> None:
    curve = simulated("exponential", sd=0.3)
    values, last = curve.values, curve.values[:, -1]
    allowed = 0.05 * (values[:, 0] - last)  # the metric falls
    p = [
        max(
            float(stats.ttest_1samp(side * (values[:, k] - last) - allowed, 0, alternative="less").pvalue)
            for side in (1, -1)
        )
        for k in range(19)
    ]
    from_here_on = [max(p[k:]) for k in range(19)]
    first = next(k for k in range(19) if from_here_on[k] < 0.05)
    place, largest = flat_from(curve, 0.05)
    assert place == first
    assert largest == pytest.approx(from_here_on[first], rel=1e-9)


def test_a_peak_is_tested_on_the_other_half() -> None:
    curve = simulated("rise and fall", sd=0.5)
    place, p = peak(curve, seed=0)
    chosen_on, tested_on = curve.halves(0)
    t = [
        min(stats.ttest_rel(chosen_on.values[:, k], chosen_on.values[:, end]).statistic for end in (0, -1))
        for k in range(1, 19)
    ]
    assert place == 1 + int(np.argmax(t))
    expected = max(
        stats.ttest_rel(tested_on.values[:, place], tested_on.values[:, end], alternative="greater").pvalue
        for end in (0, -1)
    )
    assert p == pytest.approx(expected, rel=1e-6)


def test_a_constant_metric_does_not_change() -> None:
    curve = Curve(metric="m", steps=STEPS, values=np.full((64, 20), 0.1), documents=np.arange(64))
    assert judge(curve, margin=0.05) == Judgment(verdict="no change", n=64, p=1.0)


def test_a_metric_without_noise_is_judged_exactly() -> None:
    """Every item moves by the same amount: differences have no error, so the margin decides by itself."""
    line = SHAPES["exponential"](STEPS.astype(float))
    curve = Curve(metric="m", steps=STEPS, values=np.arange(64.0)[:, None] + line, documents=np.arange(64))
    judgment = judge(curve, margin=0.05)
    change = line[-1] - line[0]
    within = [abs(value - line[-1]) < 0.05 * abs(change) for value in line]
    assert judgment.verdict == "saturated"
    assert judgment.place == within.index(True)


@pytest.mark.parametrize(
    "values",
    [np.where(STEPS > 500, 1.0, 0.0) + np.arange(64.0)[:, None], np.linspace(0, 1, STEPS.size)[None]],
    ids=["a jump of all items", "one item"],
)
def test_edge_cases_are_judged_without_a_warning(values: Any) -> None:
    """NumPy's warnings are errors here: infinity times 0, and division by n - 1."""
    judge(Curve(metric="m", steps=STEPS, values=values, documents=np.arange(len(values))), margin=0.05)


def test_a_change_in_the_middle_is_not_a_saturation() -> None:
    """Two checkpoints in the middle differ by a little, first and last are the same."""
    curve = simulated("flat", sd=1, n=256, seed=1)
    values = curve.values.copy()
    values[:, 9:11] += 0.13
    moved = Curve(metric="m", steps=STEPS, values=values, documents=curve.documents)
    judgment = judge(moved, margin=0.05)
    assert omnibus(moved, level=0.01, seed=0).p >= 0.01 or judgment.verdict in ("cannot tell", "peaked")
