"""The order test: compared with SciPy, exact under a shuffle, blind to what does not depend on order."""

import numpy as np
import pytest
from scipy import stats

from eval.membership.order_test import order_test

IDS = np.arange(10_000)
FIRST = np.zeros(10_000, dtype=np.int64)


def test_one_epoch_is_spearman() -> None:
    rng = np.random.default_rng(0)
    batches = rng.permutation(200) // 8
    scores = rng.normal(size=200) + 0.02 * batches
    result = order_test(scores, batches, FIRST[:200], IDS[:200], permutations=4999)
    expected = stats.spearmanr(scores, batches)
    assert result.rho == pytest.approx(expected.statistic, abs=1e-12)
    assert result.z == pytest.approx(expected.statistic * np.sqrt(199), abs=1e-9)
    assert result.p == pytest.approx(expected.pvalue, abs=0.02)
    assert (result.n, result.documents) == (200, 200)


def test_both_signs_are_significant() -> None:
    batches = np.arange(100) // 4
    for sign in (1, -1):
        result = order_test(sign * (batches + 0.0), batches, FIRST[:100], IDS[:100])
        assert result.rho == pytest.approx(sign)
        assert result.p == 0.001
    infinite = np.where(batches > 12, np.inf, 0.0)
    assert order_test(infinite, batches, FIRST[:100], IDS[:100]).p == 0.001


def test_epochs_are_not_compared() -> None:
    """What was read again in epoch 1 scores higher by 5, and has a later batch; within epochs there is nothing."""
    rng = np.random.default_rng(1)
    batches = np.concatenate([rng.permutation(80), 80 + rng.permutation(80)])
    epochs = batches // 80
    result = order_test(rng.normal(size=160) + 5 * epochs, batches, epochs, IDS[:160])
    assert result.p > 0.05
    assert stats.spearmanr(epochs, batches).pvalue < 1e-20


def test_documents_of_other_sizes_are_not_exchanged() -> None:
    """Documents with one sample are extreme in both, those with nine in neither; the p-values stay uniform."""
    rng, p_values = np.random.default_rng(2), []
    documents = np.concatenate([IDS[:20].repeat(9), IDS[100:140]])
    for seed in range(200):
        scores = rng.normal(size=10_000)[documents] * (1 + (documents > 99)) + rng.normal(size=220)
        batches = rng.permutation(220) // 4
        p_values.append(order_test(scores, batches, FIRST[:220], documents, permutations=199, seed=seed).p)
    assert stats.kstest(p_values, "uniform").pvalue > 0.001


def test_p_values_are_uniform_under_a_shuffle() -> None:
    """Scores of a skewed distribution with ties, read in random order, over one epoch and a half."""
    rng, p_values = np.random.default_rng(3), []
    for seed in range(200):
        batches = rng.permutation(150)
        batches[:50] += 150
        scores = np.round(rng.exponential(size=150), 1)
        documents = IDS[:150] // 2  # two samples each, in one epoch or in two
        p_values.append(order_test(scores, batches, batches // 150, documents, permutations=199, seed=seed).p)
    assert stats.kstest(p_values, "uniform").pvalue > 0.001


def test_too_little_to_exchange_is_refused() -> None:
    with pytest.raises(ValueError, match="10 documents that can be exchanged, not 9"):
        order_test(np.ones(9), IDS[:9], FIRST[:9], IDS[:9])
    with pytest.raises(ValueError, match="10 documents that can be exchanged, not 0"):
        order_test(np.ones(40), IDS[:40], FIRST[:40], FIRST[:40])
    with pytest.raises(ValueError, match="NaN"):
        order_test(np.full(40, np.nan), IDS[:40], FIRST[:40], IDS[:40])
    assert order_test(np.ones(40), IDS[:40], FIRST[:40], IDS[:40]).p == 1.0
