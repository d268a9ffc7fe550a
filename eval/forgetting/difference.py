"""The difference in differences, its plain counterpart, and their intervals over documents and batches of reading."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from eval.forgetting.curve import Curve, sums_by
from eval.separation import Floats, Ints, codes_of


@dataclass(frozen=True, eq=False)
class Cohort:
    """Samples whose first readings are compared with sealed ones."""

    scores: Floats
    """Mean log-likelihood at the checkpoint, float64[n], nats per target."""
    before: Floats
    """Recorded loss of the first reading, float64[n]."""
    batches: Ints
    """Batch of the first reading, int64[n]: its weights had read this many batches."""
    documents: Ints


@dataclass(frozen=True, eq=False)
class Sealed:
    """Sealed samples at the same checkpoint; all their documents were measured during training."""

    scores: Floats
    documents: Ints


def recorded_difference(cohort: Cohort, sealed: Sealed, curve: Curve) -> dict[str, float]:
    """Mean of (score + recorded loss at c) - (sealed score - sealed score at c), with its interval.

    The sealed side is the same documents at the checkpoint and at c: their mean change from their own level on the
    curve. The variance adds three independent parts: read samples, clustered by document and by batch of reading;
    measured sealed losses, clustered by document and by step, with the sealed scores of the same documents; and the
    bias of smoothing.
    """
    row = np.searchsorted(curve.ids, sealed.documents)
    changes = sealed.scores + curve.effects[row]
    effects = cohort.scores + cohort.before - curve.at(cohort.batches)
    gradient = curve.design_means[row].mean(axis=0) - curve.basis(cohort.batches).mean(axis=0)
    of_losses = curve.influence(gradient) * curve.residuals
    of_documents = sums_by(curve.codes, of_losses, len(curve.ids))
    of_documents -= sums_by(row, changes - changes.mean(), len(curve.ids)) / len(row)
    # The effect of a document is the mean of its losses: the noise of a step enters there, too.
    shares = np.bincount(row, minlength=len(curve.ids)) / np.bincount(curve.codes) / len(row)
    of_losses = of_losses - shares[curve.codes] * curve.residuals
    of_steps = sums_by(codes_of(curve.steps), of_losses)
    variance = _total(of_documents) + max(0.0, _total(of_steps) - float((of_losses**2).sum()))
    variance += curve.squared_bias(gradient)
    value = float(effects.mean() - changes.mean())
    return _with_interval(value, effects, cohort, variance)


def plain_difference(cohort: Cohort, sealed: Sealed) -> dict[str, float]:
    """Mean score of the cohort minus that of sealed samples, with its interval: what is seen without the record."""
    centered = sealed.scores - sealed.scores.mean()
    variance = _total(sums_by(codes_of(sealed.documents), centered)) / len(centered) ** 2
    return _with_interval(float(cohort.scores.mean() - sealed.scores.mean()), cohort.scores, cohort, variance)


def two_way_variance(values: Floats, documents: Ints, batches: Ints) -> float:
    """Variance of the mean of `values`, clustered by document and by batch (Cameron, Gelbach & Miller 2011).

    At least as large as with one of the two, where the estimate by the formula may be smaller, or even negative.
    """
    centered = (values - values.mean()) / len(values)
    pairs = codes_of(documents) * (int(batches.max()) + 1) + batches
    document, batch, both = (_total(sums_by(codes_of(clusters), centered)) for clusters in (documents, batches, pairs))
    return max(document + batch - both, document, batch)


def _total(sums: Floats) -> float:
    """Variance of a sum of independent parts from the parts, float64[clusters], with the factor C / (C - 1)."""
    used = len(sums)
    return float((sums**2).sum()) * used / max(1, used - 1)


def _with_interval(value: float, values: Floats, cohort: Cohort, variance: float) -> dict[str, float]:
    """The value with its 95% interval; none if all samples are of one document or one batch.

    The quantile is that of Student's t for the smaller number of clusters.
    """
    from scipy.stats import t

    clusters = min(len(np.unique(cohort.documents)), len(np.unique(cohort.batches)))
    if clusters < 2:
        return {"value": value}
    stderr = math.sqrt(variance + two_way_variance(values, cohort.documents, cohort.batches))
    half = float(t.ppf(0.975, clusters - 1)) * stderr
    return {"value": value, "stderr": stderr, "ci_low": value - half, "ci_high": value + half}
