"""The curve of sealed losses: exact where the truth is simple, equal to least squares, close to a smooth truth."""

from __future__ import annotations

import numpy as np
import pytest

from eval.forgetting.curve import fit, means_by
from eval.separation import Floats, Ints


def rotated(steps: Ints, per_step: int, documents: int) -> tuple[Ints, Ints]:
    """Steps and documents of measurements in which the documents take turns."""
    return np.repeat(steps, per_step), np.arange(len(steps) * per_step) % documents * 7 + 3


def truth(steps: Ints) -> Floats:
    return 7.0 - 2.5 * (1 - np.exp(-steps / 25)) + 0.3 * np.sin(np.log1p(steps))


def test_a_line_is_recovered_exactly() -> None:
    steps, documents = rotated(np.arange(60), 4, 23)
    effects = np.random.default_rng(0).normal(size=200)
    curve = fit(steps, documents, 5 - 0.4 * np.log1p(steps) + effects[documents])
    at = np.array([0, 1, 17, 59])
    assert curve.at(at) - curve.at(at[:1]) == pytest.approx(-0.4 * np.log1p(at), abs=1e-6)
    levels = effects[curve.ids]
    assert curve.effects - curve.effects[0] == pytest.approx(levels - levels[0], abs=1e-6)
    assert np.abs(curve.residuals).max() < 1e-6


def test_between_few_steps_it_is_least_squares_with_a_dummy_per_document() -> None:
    """Three steps: a value per step, no penalty. Effects and values are those of ordinary least squares."""
    rng = np.random.default_rng(1)
    steps, documents = rotated(np.array([0, 10, 40]), 5, 6)
    losses = rng.normal(size=len(steps)) + steps / 20
    curve = fit(steps, documents, losses)
    dummies = (documents[:, None] == curve.ids).astype(float)
    by_step = (steps[:, None] == np.array([10, 40])).astype(float)
    expected = np.linalg.lstsq(np.hstack([dummies, by_step]), losses, rcond=None)[0]
    values = curve.at(np.array([0, 10, 40]))
    assert values[1:] - values[0] == pytest.approx(expected[-2:])
    assert curve.effects + values[0] == pytest.approx(expected[:6])
    gradient = curve.basis(np.array([40]))[0] - curve.basis(np.array([0]))[0]
    moved = fit(steps, documents, losses + 0.01 * (np.arange(len(steps)) == 7)).at(np.array([0, 40]))
    change = (moved[1] - moved[0]) - (values[2] - values[0])
    assert curve.influence(gradient)[7] * 0.01 == pytest.approx(change)


def test_a_smooth_truth_is_followed_at_every_step() -> None:
    """Noise 0.1, 4 of 50 documents per step: the root mean square error is far below the noise."""
    steps, documents = rotated(np.arange(200), 4, 50)
    rng = np.random.default_rng(2)
    losses = truth(steps) + rng.normal(size=400)[documents % 400] + rng.normal(scale=0.1, size=len(steps))
    curve, at = fit(steps, documents, losses), np.arange(200)
    error = curve.at(at) - truth(at)
    assert np.std(error) < 0.02  # 0.012 observed
    assert curve.variance == pytest.approx(0.01, rel=0.2)
    sparse = fit(steps[steps % 10 == 0], documents[steps % 10 == 0], losses[steps % 10 == 0])
    assert np.std((sparse.at(at) - truth(at))[5:]) < 0.06


def test_beyond_the_measured_steps_it_is_constant() -> None:
    steps, documents = rotated(np.arange(10, 30), 4, 8)
    curve = fit(steps, documents, truth(steps))
    assert curve.at(np.array([0, 100])).tolist() == curve.at(np.array([10, 29])).tolist()


def test_which_steps_are_far_from_measured_ones() -> None:
    """Measured at 0, 4, 16 and 250: between 16 and 250, 1 + step grows 14.8 times."""
    steps, documents = rotated(np.array([0, 4, 16, 250]), 4, 4)
    curve = fit(steps, documents, truth(steps))
    assert curve.is_far(np.array([0, 2, 4, 16, 17, 100, 249, 250, 251])).tolist() == [False] * 4 + [True] * 3 + [
        False,
        True,
    ]


def test_means_by_code() -> None:
    assert means_by(np.array([1, 0, 1]), np.array([1.0, 5.0, 3.0])).tolist() == [5.0, 2.0]
    assert means_by(np.array([0, 0]), np.array([[1.0, 2.0], [3.0, 6.0]])).tolist() == [[2.0, 4.0]]
