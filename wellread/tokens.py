"""What a model says about each target token of samples: the columns from which scores are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLUMNS: dict[str, Any] = {
    "logp": np.float32,
    "rank": np.int32,
    "mu": np.float32,
    "sigma": np.float32,
    "top40": np.float32,
}
"""Column -> type: 20 bytes per token."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Columns of the target tokens of samples, one sample after the other.

    With p the distribution that the model predicts for a target token, from its exact prefix:
    """

    sample_id: NDArray[np.int64]
    """(samples,)."""
    bounds: NDArray[np.int64]
    """(samples + 1,): sample i has the tokens bounds[i] … bounds[i + 1] - 1 of each column."""
    logp: NDArray[Any]
    """(tokens,), log p of the token, nats."""
    rank: NDArray[Any]
    """(tokens,), number of tokens with a higher logit, and of those with the same logit and a lower id; 0: argmax."""
    mu: NDArray[Any]
    """(tokens,), mean of log p under p, nats: minus the entropy."""
    sigma: NDArray[Any]
    """(tokens,), standard deviation of log p under p, nats."""
    top40: NDArray[Any]
    """(tokens,), log of the sum of the 40 highest probabilities, nats."""

    @property
    def n_targets(self) -> NDArray[np.int64]:
        """(samples,), number of target tokens of each sample."""
        return np.diff(self.bounds)

    def sums(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Sum over the tokens of each sample, in float64; (samples,); 0 for a sample without tokens.

        Parameters
        ----------
        values : (tokens,)
        """
        totals = np.zeros(self.sample_id.size)
        some = self.n_targets > 0
        if some.any():
            totals[some] = np.add.reduceat(values, self.bounds[:-1][some], dtype=np.float64)
        return totals

    def means(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Mean over the tokens of each sample, (samples,); NaN for a sample without tokens."""
        missing = np.full(self.sample_id.size, np.nan)
        return np.asarray(np.divide(self.sums(values), self.n_targets, out=missing, where=self.n_targets > 0))

    def at(self, ids: NDArray[np.int64]) -> Tokens:
        """The given samples, in the given order.

        Raises
        ------
        KeyError
            When one of them is missing.
        """
        order = np.argsort(self.sample_id, kind="stable")
        places = np.searchsorted(self.sample_id, ids, sorter=order)
        rows = order[np.minimum(places, order.size - 1)] if order.size else order
        if not np.array_equal(self.sample_id[rows], ids):
            raise KeyError("samples are missing")
        sizes = self.n_targets[rows]
        bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        picks = np.repeat(self.bounds[rows] - bounds[:-1], sizes) + np.arange(bounds[-1])
        return Tokens(sample_id=ids, bounds=bounds, **{name: getattr(self, name)[picks] for name in COLUMNS})

    @classmethod
    def joined(cls, parts: Sequence[Tokens]) -> Tokens:
        """The samples of all parts, one part after the other."""
        sizes = np.concatenate([np.zeros(1, np.int64), *(part.n_targets for part in parts)])
        columns = {name: np.concatenate([np.zeros(0, kind), *(getattr(part, name) for part in parts)])
                   for name, kind in COLUMNS.items()}  # fmt: skip
        ids = np.concatenate([np.zeros(0, np.int64), *(part.sample_id for part in parts)])
        return cls(sample_id=ids, bounds=np.cumsum(sizes), **columns)
