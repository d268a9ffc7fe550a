"""Intervals of ratios, by hand and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eval.generations.sealed import SealedLosses
from eval.intervals import clustered_mean, linearized


def test_a_ratio_by_hand() -> None:
    assert linearized(np.array([2.0, 4, 6]), np.array([1.0, 2, 3])).tolist() == [2, 2, 2]  # each has 2 per unit
    values = linearized(np.array([3.0, 1]), np.array([1.0, 3]))  # ratio 1, mean size 2
    assert values.tolist() == [1 + (3 - 1) / 2, 1 + (1 - 3) / 2]


def test_losses_per_token_and_bits_per_byte_have_the_intervals_of_ratios() -> None:
    """400 draws of 256 samples of different lengths, 2.8 ± .3 nats per token.

    95% intervals contain the truth in 363 to 395 draws: by chance, fewer or more happen in 2 of 10,000 seeds. Their
    half-width is 1.96 SE, with the variance of (loss - 2.8 n) / mean n.
    """
    rng, inside, widths = np.random.default_rng(0), np.zeros(2), []
    for _ in range(400):
        lengths = np.ceil(rng.lognormal(3, 0.7, 256)).astype(np.int64)
        losses = SealedLosses(
            sample_id=np.arange(256),
            n_targets=lengths,
            n_bytes=4 * lengths,
            loss=lengths * (2.8 + rng.normal(0, 0.3, 256)),
        )
        for place, (values, truth) in enumerate([(losses.per_token, 2.8), (losses.bits_per_byte, 0.7 / math.log(2))]):
            row = clustered_mean(values, np.arange(256))
            inside[place] += row["ci_low"] <= truth <= row["ci_high"]
        row = clustered_mean(losses.per_token, np.arange(256))
        assert row["value"] == pytest.approx(losses.loss.sum() / lengths.sum(), rel=1e-12)
        assert losses.paired_bits_per_byte.mean() == pytest.approx(losses.bits_per_byte.mean(), rel=1e-12)
        widths.append(row["ci_high"] - row["value"])
    assert (inside >= 363).all()
    assert (inside <= 395).all()
    size_factor = math.sqrt(math.exp(0.7**2))  # root of E[n^2] / E[n]^2 of a lognormal distribution
    assert np.mean(widths) == pytest.approx(1.96 * 0.3 * size_factor / 16, rel=0.05)
