"""The curve of one metric over the checkpoints of a run: paired values of the same items at every checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from eval.separation import Floats, Ints, codes_of


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Values of a metric, for the same items at every checkpoint.

    All statistics are about the means over items. Their errors come from sums over documents: items of one document
    are not independent, and neither are the values of one item at several checkpoints.
    """

    metric: str
    steps: Ints
    """Steps of the checkpoints, int64[k], ascending."""
    values: Floats
    """Value of each item at each checkpoint, float64[n, k], finite."""
    documents: Ints
    """Document of each item, int64[n]."""
    item_sizes: Floats | None = None
    """Of a ratio, the size of each item, float64[n]: see `eval.items.Items`."""

    @property
    def n(self) -> int:
        """Number of items."""
        return len(self.values)

    @cached_property
    def means(self) -> Floats:
        """Mean over the items at each checkpoint, float64[k]."""
        return np.asarray(self.values.mean(axis=0))

    @property
    def spread(self) -> float:
        """Standard deviation between items: the root of the mean over checkpoints of their variance.

        Of a ratio, it is that of the linearized values (`eval.intervals.linearized`): items that differ only in their
        size do not differ.
        """
        shares = np.ones(self.n) if self.item_sizes is None else self.item_sizes / self.item_sizes.mean()
        residuals = self.values - shares[:, None] * self.means
        return float(np.sqrt((residuals**2).sum(axis=0).mean() / max(1, self.n - 1)))

    @cached_property
    def sizes(self) -> Ints:
        """Number of items of each document, int64[c]."""
        return np.bincount(codes_of(self.documents))

    @property
    def n_documents(self) -> int:
        """Number of documents."""
        return int(self.sizes.size)

    @cached_property
    def sums(self) -> Floats:
        """Sum of the values of each document at each checkpoint, float64[c, k]."""
        totals = np.zeros((self.n_documents, self.steps.size))
        np.add.at(totals, codes_of(self.documents), self.values)
        return totals

    @cached_property
    def covariance(self) -> Floats:
        """Covariance of `means`, float64[k, k]; needs two documents.

        The cluster-robust estimator of Liang & Zeger 1986 with the factor c / (c - 1), as `clustered_mean` uses it.
        """
        return np.asarray(self._errors.T @ self._errors)

    @cached_property
    def _errors(self) -> Floats:
        """What each document adds to the errors of the means, float64[c, k]: `covariance` is its square."""
        c = self.n_documents
        return np.asarray((self.sums - self.sizes[:, None] * self.means) * (np.sqrt(c / (c - 1)) / self.n))

    def t(self, contrasts: Floats) -> Floats:
        """The t statistic of each contrast of the means; infinite for a difference without any error, 0 for none.

        Parameters
        ----------
        contrasts
            Weights of the checkpoints, float64[q, k]; each row adds up to 0.

        Returns
        -------
        float64[q]
            Student's t with `n_documents` - 1 degrees of freedom if the contrast is 0.
        """
        estimates = contrasts @ self.means
        errors = np.sqrt(((self._errors @ contrasts.T) ** 2).sum(axis=0))
        scale = np.abs(self.values).max() * 1e-12  # below it, a difference is an error of rounding
        estimates = np.where(np.abs(estimates) <= scale, 0.0, estimates)
        exact = errors <= scale
        ratio = np.divide(estimates, errors, out=np.zeros_like(estimates), where=~exact)
        return np.where(exact & (estimates != 0), np.copysign(np.inf, estimates), ratio)

    def halves(self, seed: int) -> Iterator[Curve]:
        """Two curves, each of a random half of the documents."""
        codes = codes_of(self.documents)
        first = np.random.default_rng(seed).permutation(self.n_documents) < self.n_documents // 2
        for half in (first[codes], ~first[codes]):
            yield replace(
                self,
                values=self.values[half],
                documents=self.documents[half],
                item_sizes=None if self.item_sizes is None else self.item_sizes[half],
            )


def contrast(k: int, *, plus: int, minus: int) -> Floats:
    """Weights of `k` checkpoints that compare ``plus`` with ``minus``: their places; float64[k]."""
    row = np.zeros(k)
    row[plus] += 1
    row[minus] -= 1
    return row
