"""Comparison of members with non-members: AUC, TPR and thresholds at bounded FPR, intervals, control."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval.groups import SHUFFLED
from eval.intervals import clustered_mean, spread
from eval.resampling import Resampling
from eval.separation import ALPHAS, Floats, Ints, auc, nonmembers_needed, threshold_at_fpr, tpr_at_fpr
from eval.statistics import detectable_auc, rank_sum_p

Row = dict[str, Any]
"""Fields group, metric, value, stderr, ci_low, ci_high and n of a result."""


@dataclass(frozen=True)
class Side:
    """The values of one score for one group, float64[n], and the document of each sample, int64[n]."""

    scores: Floats
    documents: Ints

    @property
    def size(self) -> int:
        """Number of samples."""
        return int(self.scores.size)

    def defined(self) -> Side:
        """The samples for which the score is defined."""
        defined = ~np.isnan(self.scores)
        return Side(self.scores[defined], self.documents[defined])


@dataclass
class Comparer:
    """Compares groups with non-members; draws of documents are shared by all scores."""

    bootstrap: int
    seed: int
    _resamplings: dict[tuple[bytes, bytes], Resampling] = field(default_factory=dict)

    def rows(self, pairs: Mapping[str, tuple[Side, Side]], against: str) -> Iterator[Row]:
        """Yield the rows of one score: each group compared with its non-members, and the control.

        Parameters
        ----------
        pairs
            Name of each group -> its members, and the non-members that they are compared with.
        against
            Name of the non-members, for the row with their number.
        """
        control = None
        for name, sides in pairs.items():
            members, nonmembers = (side.defined() for side in sides)
            if min(members.size, nonmembers.size) < 2:
                continue
            control = control or (members, nonmembers)
            rows = self._compare(members, nonmembers, against)
            yield from ({"group": name, "n": members.size, **row} for row in rows)
        if control:
            chance = self._resampling(*control).shuffled(control[0].scores, control[1].scores)
            value = {"metric": "auc", "value": float(chance.mean()), "n": control[0].size, **spread(chance)}
            yield {"group": SHUFFLED, **value}

    def _compare(self, members: Side, nonmembers: Side, nonmembers_name: str) -> Iterator[Row]:
        """Yield AUC, each TPR that the number of non-members allows, p-value and what this number can show."""
        resampling = self._resampling(members, nonmembers)
        alphas = [alpha for alpha in ALPHAS if nonmembers.size >= nonmembers_needed(alpha)]
        values = resampling.rates(members.scores, nonmembers.scores, alphas) if resampling.has_interval else {}
        intervals = {key: spread(draws) for key, draws in values.items()}
        yield {"metric": "auc", "value": auc(members.scores, nonmembers.scores), **intervals.get(None, {})}
        for alpha in alphas:
            rate = tpr_at_fpr(members.scores, nonmembers.scores, alpha)
            yield {"metric": f"tpr_at_fpr_{alpha:g}", "value": rate, **intervals.get(alpha, {})}
            threshold = threshold_at_fpr(nonmembers.scores, alpha)
            yield {"metric": f"threshold_at_fpr_{alpha:g}", "value": threshold}
        yield {"metric": f"n_{nonmembers_name}", "value": float(nonmembers.size)}
        sides = (members.scores, nonmembers.scores, members.documents, nonmembers.documents)
        yield {"metric": "p", "value": rank_sum_p(*sides)}
        smallest = detectable_auc(np.unique(members.documents).size, np.unique(nonmembers.documents).size)
        if smallest is not None:
            yield {"metric": "detectable_auc", "value": smallest}

    def _resampling(self, members: Side, nonmembers: Side) -> Resampling:
        key = members.documents.tobytes(), nonmembers.documents.tobytes()
        if key not in self._resamplings:
            self._resamplings[key] = Resampling(members.documents, nonmembers.documents, self.bootstrap, self.seed)
        return self._resamplings[key]


def describe(sides: Mapping[str, Side], *, is_loss: bool) -> Iterator[Row]:
    """Yield how many samples of each group have no score, and the mean loss if minus the scores are losses."""
    for name, side in sides.items():
        defined = side.defined()
        if undefined := side.size - defined.size:
            yield {"group": name, "metric": "n_undefined", "value": float(undefined), "n": side.size}
        if is_loss and defined.size > 1:
            yield {"group": name, "metric": "mean_loss", "n": defined.size, **mean_loss(defined)}


def mean_loss(side: Side) -> dict[str, float]:
    """Mean over samples of the loss per target token, in nats, with its standard error over documents."""
    return clustered_mean(-side.scores, side.documents)
