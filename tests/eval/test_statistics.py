"""Statistics of evaluations, compared with hand-computed values, SciPy, scikit-learn and simulations."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics
from support.resampled import cluster_bootstrap, permuted_auc

from eval.separation import auc, roc
from eval.statistics import detectable_auc, holm, permutation_p, rank_sum_p

IDS = np.arange(10_000)


def test_holm_by_hand() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.6, 0.7])).tolist() == [1.0, 1.0]
    assert holm(np.array([0.02])).tolist() == [0.02]
    assert holm(np.array([])).tolist() == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm(np.array([0.5, np.nan]))


def test_permutation_p_counts_the_observed_labels() -> None:
    assert permutation_p(0.7, np.array([0.1, 0.7, 0.9])) == 0.75
    assert permutation_p(2.0, np.zeros(999)) == 0.001


@pytest.mark.parametrize("seed", range(100))
def test_auc_and_roc_equal_those_of_scikit_learn_with_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    m, n = rng.integers(1, 60, 2)
    members = rng.integers(0, rng.integers(2, 12), m) / 3
    nonmembers = rng.integers(0, rng.integers(2, 12), n) / 3
    labels, scores = np.repeat([1, 0], [m, n]), np.concatenate([members, nonmembers])
    assert auc(members, nonmembers) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
    expected = metrics.roc_curve(labels, scores, drop_intermediate=False)
    for rate, of_sklearn in zip(roc(members, nonmembers), expected, strict=False):
        assert rate == pytest.approx(of_sklearn, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_rank_sum_p_is_that_of_mann_whitney(seed: int) -> None:
    rng = np.random.default_rng(seed)
    members, nonmembers = rng.integers(0, 9, 37) + 1.0, rng.integers(0, 8, 23) * 1.0
    expected = stats.mannwhitneyu(members, nonmembers, method="asymptotic", use_continuity=False).pvalue
    assert rank_sum_p(members, nonmembers, IDS[:37], IDS[37:60]) == pytest.approx(expected, rel=1e-9)


def test_rank_sum_p_by_document_agrees_with_permutations() -> None:
    rng = np.random.default_rng(0)
    documents = IDS[:120].repeat(rng.integers(1, 5, 120))
    scores = rng.normal(size=120)[documents] + rng.normal(size=documents.size) + 0.4 * (documents < 70)
    sides = scores[documents < 70], scores[documents >= 70], documents[documents < 70], documents[documents >= 70]
    draws = permuted_auc(*sides, draws=20_000, seed=1)
    by_permutation = permutation_p(abs(auc(*sides[:2]) - 0.5), np.abs(draws - draws.mean()))
    p = rank_sum_p(*sides)
    assert p == pytest.approx(by_permutation, rel=0.25)
    assert p > 1.5 * rank_sum_p(*sides[:2], IDS[: sides[0].size], IDS[5000 : 5000 + sides[1].size])


def test_the_clustered_variance_by_hand() -> None:
    """Centered ranks are 1.5 and -0.5 of members, 0.5 and -1.5 of non-members; each is divided by 2.

    With members of one document, the sums are 0.5, -0.25 and 0.75: in total 1, with variance 0.875 * 3 / 2.
    """
    members, nonmembers = np.array([3.0, 1.0]), np.array([2.0, 0.0])
    p = rank_sum_p(members, nonmembers, np.array([1, 1]), np.array([2, 3]))
    assert p == pytest.approx(2 * stats.norm.sf(1 / np.sqrt(1.3125)), rel=1e-12)
    shared = rank_sum_p(members, nonmembers, np.array([1, 2]), np.array([1, 3]))  # 0.5, -0.25, 0.75, too
    assert shared == pytest.approx(p, rel=1e-12)


def test_with_as_many_members_as_nonmembers_both_variances_are_equal() -> None:
    """One document with two samples among 400 hardly changes the p-value, so there is no jump between the two."""
    rng = np.random.default_rng(3)
    members, nonmembers = rng.normal(0.2, 1, 200), rng.normal(size=200)
    one_each = rank_sum_p(members, nonmembers, IDS[:200], IDS[200:400])
    assert rank_sum_p(members, nonmembers, np.maximum(IDS[:200], 1), IDS[200:400]) == pytest.approx(one_each, rel=0.05)


@pytest.mark.parametrize(("read", "sealed", "windows", "share"), [(900, 100, 10, 0.1), (2000, 60, 30, 0.033)])
def test_rank_sum_p_holds_its_level_where_one_side_has_few_samples_of_each_document(
    read: int, sealed: int, windows: int, share: float
) -> None:
    """Half of the variance is between documents; of read ones a share of the windows was read, of sealed ones all are.

    400 draws without any effect reject at most 35 times at 5% (20 expected; above that with a probability of 6e-4).
    The permutation variance of document sums rejects 15% and 43%.
    """
    rng, rejected = np.random.default_rng(11), 0
    for _ in range(400):
        sides = [rng.normal(size=n) for n in (read, sealed)]
        windows_read = np.sort(rng.permutation(read * windows)[: int(share * read * windows)]) // windows
        documents = windows_read, IDS[:sealed].repeat(windows)
        scores = [side[of] + rng.normal(size=of.size) for side, of in zip(sides, documents, strict=True)]
        rejected += rank_sum_p(scores[0], scores[1], documents[0], documents[1] + read) < 0.05
    assert rejected <= 35


def test_rank_sum_p_without_information_is_one() -> None:
    assert rank_sum_p(np.ones(5), np.ones(4), IDS[:5], IDS[5:9]) == 1.0
    assert rank_sum_p(np.ones(5), np.ones(0), IDS[:5], IDS[5:5]) == 1.0


def test_detectable_auc_is_detected_in_80_percent() -> None:
    """Of 500 draws at that AUC; the limits are 4 standard errors, a false failure has a probability of 1e-4."""
    smallest = detectable_auc(146, 146)
    assert smallest == pytest.approx(0.594, abs=0.001)
    rng, distance = np.random.default_rng(0), np.sqrt(2) * stats.norm.ppf(smallest)
    ids = IDS[:146], IDS[146:292]
    detected = sum(rank_sum_p(rng.normal(distance, 1, 146), rng.normal(size=146), *ids) < 0.05 for _ in range(500))
    assert abs(detected - 400) <= 36


def test_detectable_auc_needs_a_minimum_of_samples() -> None:
    assert detectable_auc(2, 2) is None
    aucs = [detectable_auc(n, n) for n in (20, 100, 500, 2000)]
    assert all(a is not None and b is not None and a > b > 0.5 for a, b in pairwise(aucs))


@pytest.mark.parametrize("truth", [0.5, 0.75, 0.95])
def test_intervals_cover_the_truth_at_every_auc(truth: float) -> None:
    """95% of 200 intervals; 180 and 198 are 3.2 and 2.6 standard errors away."""
    distance, covered = np.sqrt(2) * stats.norm.ppf(truth), 0
    rng = np.random.default_rng(7)
    for seed in range(200):
        sides = rng.normal(distance, 1, 146), rng.normal(0, 1, 146)
        draws = cluster_bootstrap(*sides, IDS[:146], IDS[:146], draws=200, seed=seed)
        low, high = np.quantile(draws, [0.025, 0.975])
        covered += low <= truth <= high
    assert 180 <= covered <= 198
