"""Dataset inference: one split compared with SciPy, uniform without a difference, strong where single scores fail."""

import numpy as np
import pytest
from scipy import stats

from eval.membership import inference
from eval.membership.inference import dataset_inference

IDS = np.arange(10_000)


def test_one_split_is_welchs_test_of_a_ridge_regression() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(80, 3)), rng.integers(0, 2, 80).astype(float)
    half_a, half_b = np.arange(40), np.arange(40, 80)
    t, freedom = inference._tests(features, labels[:, None].astype(np.float32), half_a, half_b)
    a = features[:40] - features[:40].mean(axis=0)
    weights = np.linalg.inv(a.T @ a + 40 * np.eye(3)) @ a.T @ (labels[:40] - labels[:40].mean())
    predicted = features[40:] @ weights
    expected = stats.ttest_ind(
        predicted[labels[40:] == 1], predicted[labels[40:] == 0], equal_var=False, alternative="greater"
    )
    assert t[0] == pytest.approx(expected.statistic, abs=1e-5)
    assert freedom[0] == pytest.approx(expected.df, rel=1e-4)


def test_scores_are_normal_quantiles_of_documents() -> None:
    features = inference._features(np.array([[1.0], [np.inf], [-5.0], [2.0]]), np.array([0, 1, 1, 2]))
    quantiles = stats.norm.ppf([0.375, 0.875, 0.125, 0.625])
    assert features[:, 0] == pytest.approx([quantiles[0], quantiles[1:3].mean(), quantiles[3]])


def test_many_weak_scores_together_are_significant() -> None:
    """Each of 8 scores has an AUC of 0.59; 4 of them are turned around, so only half A can say how to add them."""
    rng, is_member = np.random.default_rng(1), IDS[:400] < 200
    signs = np.array([1, -1] * 4)
    scores = rng.normal(size=(400, 8)) + 0.32 * is_member[:, None] * signs
    result = dataset_inference(scores, is_member, IDS[:400], splits=40)
    assert result.p == 0.001
    assert result.median_p < 1e-3
    assert result.significant > 0.9
    assert (result.members, result.nonmembers) == (200, 200)


def test_copies_of_documents_add_nothing() -> None:
    rng, is_member = np.random.default_rng(2), IDS[:60] < 30
    scores = rng.normal(size=(60, 3)) + 0.3 * is_member[:, None]
    once = dataset_inference(scores, is_member, IDS[:60], splits=20)
    fivefold = dataset_inference(scores.repeat(5, 0), is_member.repeat(5), IDS[:60].repeat(5), splits=20)
    assert fivefold.p == once.p
    assert fivefold.median_p == pytest.approx(once.median_p, rel=1e-3)
    assert fivefold.members == 30


def test_p_values_are_uniform_without_a_difference() -> None:
    """200 draws: skewed and correlated scores, 40 documents against 30, some with two samples."""
    rng, p_values = np.random.default_rng(3), []
    documents = np.concatenate([IDS[:70], IDS[:20]])
    for seed in range(200):
        common = rng.exponential(size=90)[documents]
        scores = np.stack([common + rng.normal(size=90), common, rng.integers(0, 4, 90)], axis=1)
        is_member = (rng.permutation(70) < 40)[documents]
        p_values.append(dataset_inference(scores, is_member, documents, splits=10, permutations=199, seed=seed).p)
    assert stats.kstest(p_values, "uniform").pvalue > 0.001


def test_bad_sides_are_refused() -> None:
    scores = np.ones((50, 2))
    with pytest.raises(ValueError, match="20 documents of each side, not 50 and 0"):
        dataset_inference(scores, np.ones(50, dtype=bool), IDS[:50])
    with pytest.raises(ValueError, match="a document has members and non-members"):
        dataset_inference(scores, IDS[:50] < 25, IDS[:50] // 2)
    with pytest.raises(ValueError, match="NaN"):
        dataset_inference(scores * np.nan, IDS[:50] < 25, IDS[:50])
    assert dataset_inference(scores, IDS[:50] < 25, IDS[:50], splits=5).p == 1.0
