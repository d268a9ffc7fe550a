"""Scores of single samples under one checkpoint, from which results are computed."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Log-likelihoods of samples under one checkpoint, in the order of their ids.

    `sample_id` int64[n]; `n_targets` int64[n], targets of each sample; `log_likelihood` float64[n], their sum in nats.
    """

    sample_id: npt.NDArray[np.int64]
    n_targets: npt.NDArray[np.int64]
    log_likelihood: npt.NDArray[np.float64]

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Mean log-likelihood per target, nats, float64[n]; NaN where a sample has no target."""
        missing = np.full(self.sample_id.size, np.nan)
        return np.asarray(np.divide(self.log_likelihood, self.n_targets, out=missing, where=self.n_targets > 0))

    def at(self, sample_ids: npt.NDArray[np.int64]) -> "Scores":
        """Scores of the given samples, in the given order; all of them must be present."""
        rows = np.searchsorted(self.sample_id, sample_ids)
        return Scores(sample_id=sample_ids, n_targets=self.n_targets[rows], log_likelihood=self.log_likelihood[rows])

    @classmethod
    def joined(cls, parts: Sequence["Scores"]) -> "Scores":
        """The samples of all parts, one part after the other."""
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)})

    @classmethod
    def empty(cls) -> "Scores":
        """Scores of zero samples."""
        none = np.zeros(0, dtype=np.int64)
        return cls(sample_id=none, n_targets=none, log_likelihood=none.astype(np.float64))
