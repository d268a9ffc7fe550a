"""Errors of means and contrasts, compared with other computations."""

import numpy as np
import pytest
from scipy import stats

from eval.intervals import clustered_mean
from eval.saturation.curve import Curve, contrast


def random_curve(*, n: int = 40, k: int = 5, per_document: int = 1) -> Curve:
    values = np.random.default_rng(n).normal(0, 1, (n, k)).cumsum(axis=1)
    return Curve(metric="m", steps=np.arange(k), values=values, documents=np.arange(n) // per_document * 7)


def test_without_clusters_a_contrast_is_the_paired_t_test() -> None:
    curve = random_curve()
    expected = stats.ttest_rel(curve.values[:, 3], curve.values[:, 1]).statistic
    assert curve.t(contrast(5, plus=3, minus=1)[None]) == pytest.approx([expected], abs=1e-12)


@pytest.mark.parametrize("per_document", [1, 4])
def test_the_covariance_is_that_of_clustered_means(per_document: int) -> None:
    curve = random_curve(per_document=per_document)
    for place in range(5):
        mean = clustered_mean(curve.values[:, place], curve.documents)
        assert curve.means[place] == pytest.approx(mean["value"], abs=1e-12)
        assert curve.covariance[place, place] == pytest.approx(mean["stderr"] ** 2, rel=1e-12)
    difference = clustered_mean(curve.values[:, 4] - curve.values[:, 0], curve.documents)
    t = curve.t(contrast(5, plus=4, minus=0)[None])
    assert t == pytest.approx([difference["value"] / difference["stderr"]], rel=1e-12)


def test_differences_without_error_are_infinite_and_equal_values_are_zero() -> None:
    values = np.random.default_rng(0).normal(1e3, 1, (20, 1)) + np.array([0.1, 0.3, 0.1])
    curve = Curve(metric="m", steps=np.arange(3), values=values, documents=np.arange(20))
    rows = np.array([contrast(3, plus=1, minus=0), contrast(3, plus=2, minus=1), contrast(3, plus=2, minus=0)])
    assert curve.t(rows).tolist() == [np.inf, -np.inf, 0.0]


def test_halves_share_no_document_and_have_all_items() -> None:
    curve = random_curve(n=44, per_document=4)
    first, second = curve.halves(0)
    assert (first.n_documents, second.n_documents) == (5, 6)
    assert not set(first.documents) & set(second.documents)
    assert sorted([*first.values[:, 0], *second.values[:, 0]]) == sorted(curve.values[:, 0])
