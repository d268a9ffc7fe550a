"""Has a metric saturated? A verdict without a model of the curve, from paired values of the same items.

1. Omnibus test over all checkpoints at 1%; not significant: `no change`, or `cannot tell` without enough power.
2. `peaked`: an extreme whose difference from first and last is significant. It is chosen on half of the documents and
   tested at 1% on the other half.
3. The total change, significant at 1%; then `saturated` at the first checkpoint from which all later ones are
   equivalent to the last one, if it is in the first half of the steps up to the last one; otherwise `not reached`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eval.saturation.curve import Curve, contrast
from eval.saturation.omnibus import omnibus
from eval.separation import Floats

LEVEL = 0.01
"""Significance level of the tests for a change."""
EQUIVALENCE_LEVEL = 0.05
"""Significance level of each of the two one-sided tests."""
POWER = 0.8
"""Power that the omnibus test needs for `no change`."""
FEWEST_DOCUMENTS = 16
"""With fewer, a test by signs of half of them can never reach 1%: its smallest p is 2 / 2^(c / 2)."""

NO_CHANGE, CANNOT_TELL = "no change", "cannot tell"
PEAKED, SATURATED, NOT_REACHED = "peaked", "saturated", "not reached"
VERDICTS = (SATURATED, NOT_REACHED, NO_CHANGE, CANNOT_TELL, PEAKED)


@dataclass(frozen=True, kw_only=True)
class Judgment:
    """The verdict about one metric."""

    verdict: str
    place: int | None = None
    """Checkpoint of the peak or of the saturation; None for the other verdicts."""
    n: int
    """Number of items."""
    p: float
    """P-value of the test that decided: see `judge`."""


def judge(curve: Curve, *, margin: float, seed: int = 0) -> Judgment:
    """Give the verdict about a metric.

    Parameters
    ----------
    curve
        At least three checkpoints.
    margin
        Largest remaining change of a saturated metric, as a share of the total change.

    Returns
    -------
    Judgment
        Its p is that of the omnibus test for `no change` and `cannot tell`; of the larger of the two tests on the
        second half for `peaked`; of the total change for `not reached`, and for `cannot tell` after a significant
        omnibus test; the largest of the equivalence tests for `saturated`.
    """
    assert curve.steps.size > 2
    overall = omnibus(curve, level=LEVEL, seed=seed)
    enough = curve.n_documents >= FEWEST_DOCUMENTS
    if not enough or overall.p >= LEVEL:
        verdict = NO_CHANGE if enough and overall.power >= POWER else CANNOT_TELL
        return Judgment(verdict=verdict, n=curve.n, p=overall.p)
    place, p = peak(curve, seed)
    if place is not None and p < LEVEL:
        return Judgment(verdict=PEAKED, place=place, n=curve.n, p=p)
    change = float(2 * _above(np.abs(curve.t(contrast(curve.steps.size, plus=-1, minus=0)[None])), curve)[0])
    if change >= LEVEL:
        return Judgment(verdict=CANNOT_TELL, n=curve.n, p=change)
    place, p = flat_from(curve, margin)
    # Half of the steps that are compared, not of a longer run: near the last of them every curve is close to its end,
    # and of texts up to the middle of a run all are in its first half.
    if place is None or curve.steps[place] > curve.steps[-1] / 2:
        return Judgment(verdict=NOT_REACHED, n=curve.n, p=change)
    return Judgment(verdict=SATURATED, place=place, n=curve.n, p=p)


def peak(curve: Curve, seed: int) -> tuple[int | None, float]:
    """The extreme between first and last checkpoint, and the p-value that it differs from both.

    On a random half of the documents, the checkpoint whose smaller t statistic against first and last is largest; the
    p-value is the larger of the two one-sided ones on the other half (intersection-union test, Berger 1982). None if
    no checkpoint is above both or below both.
    """
    k = curve.steps.size
    chosen_on, tested_on = curve.halves(seed)
    inner = range(1, k - 1)
    from_first, from_last = (
        chosen_on.t(np.array([contrast(k, plus=place, minus=end) for place in inner])) for end in (0, -1)
    )
    same_side = (np.sign(from_first) == np.sign(from_last)) & (from_first != 0)
    lesser = np.where(same_side, np.minimum(np.abs(from_first), np.abs(from_last)), 0)
    best = int(lesser.argmax())
    if lesser[best] <= 0:
        return None, 1.0
    sign = float(np.sign(from_first[best]))
    ends = np.array([contrast(k, plus=best + 1, minus=end) for end in (0, -1)])
    return best + 1, float(_above(sign * tested_on.t(ends), tested_on).max())


def flat_from(curve: Curve, margin: float) -> tuple[int | None, float]:
    """The first checkpoint from which all later ones are equivalent to the last, and their largest p-value.

    Equivalent: |m(k) - m(last)| < margin |m(last) - m(first)|, by two one-sided tests (Schuirmann 1987). Both sides are
    linear in the means once the sign of the total change is known, so each test is a paired t test of
    ±(m(k) - m(last)) - margin (m(last) - m(first)), as in Fieller 1954: the error of the total change is included.
    None if only the last checkpoint is equivalent to itself.
    """
    k = curve.steps.size
    sign = float(np.sign(curve.means[-1] - curve.means[0]))
    allowed = margin * sign * contrast(k, plus=-1, minus=0)
    distance = np.array([contrast(k, plus=place, minus=-1) for place in range(k - 1)])
    p = np.maximum(*(_above(-curve.t(side * distance - allowed), curve) for side in (1, -1)))
    later = np.maximum.accumulate(p[::-1])[::-1]  # the largest p-value from each checkpoint on
    places = np.flatnonzero(later < EQUIVALENCE_LEVEL)
    return (int(places[0]), float(later[places[0]])) if places.size else (None, 1.0)


def _above(t: Floats, curve: Curve) -> Floats:
    """Probability of a larger t statistic if the contrast is 0."""
    from scipy.special import stdtr  # scipy.stats takes a second to load

    return np.asarray(stdtr(curve.n_documents - 1, -t))
