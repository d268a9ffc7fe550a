"""The loss of sealed documents at every step, from what a run measured of them: the loss without reading.

The model is ``loss = effect of the document + f(log(1 + step)) + noise``, with a smoothing spline f. The effects are
removed by subtracting each document's mean from losses and basis (Frisch & Waugh 1933), so a curve compares documents
only with themselves. The penalty is that of a cubic smoothing spline, the integral of the squared second derivative;
restricted maximum likelihood chooses its weight (Wood 2011), which is stable where neighboring steps have errors in
common.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from eval.separation import Floats, Ints, codes_of

FEWEST_STEPS = 5
"""Below this many measured steps, the curve is not smoothed but interpolated, and a warning is due."""
MOST_KNOTS = 30
"""Most intervals between knots; the penalty, not their number, decides how smooth the curve is."""
MOST_GROWTH = 6.0
"""Most that 1 + step may grow from one measured step to the next, so that steps between them are not far from both."""
WEIGHTS = 10.0 ** np.arange(-8.0, 8.25, 0.25)
"""Weights of the penalty that are compared, relative to the size of the data's part."""


@dataclass(frozen=True, eq=False)
class Curve:
    """The fitted curve, and what the error of a value that follows from it needs."""

    steps: Ints
    """Step of each measured loss, int64[n]."""
    documents: Ints
    """Document of each, int64[n]."""
    losses: Floats
    """float64[n], nats per target."""
    knots: Floats
    degree: int
    coefficients: Floats
    inverse: Floats
    """Inverse of the penalized normal equations, float64[k, k]."""
    penalty: Floats
    """Penalty times its weight, float64[k, k]."""
    variance: float
    """Of the noise."""

    def basis(self, steps: Ints | Floats) -> Floats:
        """Basis functions of f at `steps`, float64[m, k]; constant beyond the first and last measured step."""
        from scipy.interpolate import BSpline

        x = np.clip(np.log1p(steps), self.knots[0], self.knots[-1])
        return np.asarray(BSpline.design_matrix(x, self.knots, self.degree).toarray(), dtype=np.float64)

    def at(self, steps: Ints) -> Floats:
        """f at `steps`, float64[m]; only differences between steps have a meaning."""
        return self.basis(steps) @ self.coefficients

    def is_far(self, steps: Ints) -> NDArray[np.bool_]:
        """Whether each step is far from all measured ones, so that the curve is a guess there; bool[m]."""
        measured = np.unique(self.steps)
        after = np.searchsorted(measured, steps)
        outside = (after == 0) | (after == len(measured))
        before, after = np.maximum(after - 1, 0), np.minimum(after, len(measured) - 1)
        growth = (1 + measured[after]) / (1 + measured[before])
        return np.asarray((measured[after] != steps) & (outside | (growth > MOST_GROWTH)))

    @cached_property
    def codes(self) -> Ints:
        """Number of the document of each measured loss, in the order of their ids, int64[n]."""
        return codes_of(self.documents)

    @cached_property
    def ids(self) -> Ints:
        """The measured documents, ascending."""
        return np.unique(self.documents)

    @cached_property
    def design(self) -> Floats:
        """Basis at each measured loss, float64[n, k]."""
        return self.basis(self.steps)

    @cached_property
    def design_means(self) -> Floats:
        """Mean of the basis over the losses of each document, float64[documents, k]."""
        return means_by(self.codes, self.design)

    @cached_property
    def effects(self) -> Floats:
        """Effect of each document: its mean loss without the curve, float64[documents]."""
        return means_by(self.codes, self.losses) - self.design_means @ self.coefficients

    @cached_property
    def residuals(self) -> Floats:
        """What neither effect nor curve explains, float64[n]."""
        return self.losses - self.effects[self.codes] - self.design @ self.coefficients

    def influence(self, gradient: Floats) -> Floats:
        """How much each measured loss's noise moves ``gradient @ coefficients``, float64[n]."""
        return (self.design - self.design_means[self.codes]) @ (self.inverse @ gradient)

    def squared_bias(self, gradient: Floats) -> float:
        """Expected squared error of ``gradient @ coefficients`` that smoothing causes (Nychka 1988)."""
        moved = self.inverse @ gradient
        return float(self.variance * moved @ self.penalty @ moved)


def fit(steps: Ints, documents: Ints, losses: Floats) -> Curve:
    """Fit the curve to measured losses.

    Parameters
    ----------
    steps, documents, losses
        int64[n], int64[n], float64[n]; at least two different steps.
    """
    from scipy.linalg import pinvh

    codes, x = codes_of(documents), np.log1p(np.unique(steps))
    knots, degree = _knots(x)
    curve = Curve(steps, documents, losses, knots, degree, *(np.zeros(0),) * 3, 0.0)
    design = curve.basis(steps)
    within = design - means_by(codes, design)[codes]
    values = losses - means_by(codes, losses)[codes]
    gram, moments = within.T @ within, within.T @ values
    penalty = _penalty(knots, degree)
    weight = _weight(gram, moments, float(values @ values), penalty, len(losses) - int(codes.max()) - 1)
    inverse = np.asarray(pinvh(gram + weight * penalty))
    coefficients = inverse @ moments
    left_over = values - within @ coefficients
    free = max(1.0, len(losses) - int(codes.max()) - 1 - float(np.trace(inverse @ gram)))
    variance = float(left_over @ left_over) / free
    return Curve(steps, documents, losses, knots, degree, coefficients, inverse, weight * penalty, variance)


def means_by(codes: Ints, values: Floats) -> Floats:
    """Mean of `values`, float64[n] or [n, k], over the rows of each code."""
    sums = np.zeros((int(codes.max()) + 1, *values.shape[1:]))
    np.add.at(sums, codes, values)
    counts = np.bincount(codes).astype(np.float64)
    return np.asarray(sums / counts.reshape(-1, *(1,) * (values.ndim - 1)))


def sums_by(codes: Ints, values: Floats, size: int = 0) -> Floats:
    """Sum of `values`, float64[n], over the rows of each code; of at least `size` codes."""
    return np.asarray(np.bincount(codes, weights=values, minlength=size), dtype=np.float64)


def _knots(x: Floats) -> tuple[Floats, int]:
    """Knots and degree for measured places x, ascending: cubic at quantiles of x, or lines between few places."""
    degree = 3 if len(x) >= FEWEST_STEPS else 1
    breaks = np.quantile(x, np.linspace(0, 1, MOST_KNOTS + 1)) if degree == 3 and len(x) > MOST_KNOTS else x
    return np.concatenate([[breaks[0]] * degree, breaks, [breaks[-1]] * degree]), degree


def _penalty(knots: Floats, degree: int) -> Floats:
    """Integral of the products of second derivatives of the basis, float64[k, k]; 0 for lines."""
    from scipy.interpolate import BSpline

    k = len(knots) - degree - 1
    if degree < 3:
        return np.zeros((k, k))
    breaks = np.unique(knots)
    # Second derivatives are lines between breaks, so two Gauss points per interval are exact.
    middle, half = (breaks[1:] + breaks[:-1]) / 2, np.diff(breaks) / 2
    points = (middle[:, None] + half[:, None] * np.array([-1, 1]) / np.sqrt(3)).ravel()
    second = np.stack([BSpline(knots, np.eye(k)[i], degree).derivative(2)(points) for i in range(k)], axis=1)
    return np.asarray(second.T @ (np.repeat(half, 2)[:, None] * second))


def _weight(gram: Floats, moments: Floats, total: float, penalty: Floats, free: int) -> float:
    """Weight of the penalty with the largest restricted likelihood.

    Parameters
    ----------
    total
        Sum of squares of the losses within documents.
    free
        Number of losses minus number of documents.
    """
    if not penalty.any() or free < 3:
        return float(np.trace(gram) / max(np.trace(penalty), 1e-300)) if penalty.any() else 0.0
    # Of the basis, the constant is in the effects of documents; a line is not penalized.
    scale = float(np.trace(gram) / np.trace(penalty))
    rank = len(penalty) - 2
    scores = []
    for weight in scale * WEIGHTS:
        values, vectors = np.linalg.eigh(gram + weight * penalty)
        used = values > values[-1] * 1e-10
        explained = float(((vectors[:, used].T @ moments) ** 2 / values[used]).sum())
        deviance = (free - 1) * np.log(max(total - explained, 1e-300))
        scores.append(deviance + np.log(values[used]).sum() - rank * np.log(weight))
    return float(scale * WEIGHTS[int(np.argmin(scores))])
