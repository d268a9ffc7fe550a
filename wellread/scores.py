"""Scores of single samples under one checkpoint, from which results are computed."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wellread.results import read_table, write_table


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

    def merged(self, other: "Scores") -> "Scores":
        """These scores and those of `other`, sorted by sample id; no sample may be in both."""
        columns = {f.name: np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(Scores)}
        order = np.argsort(columns["sample_id"])
        return Scores(**{name: column[order] for name, column in columns.items()})

    @classmethod
    def empty(cls) -> "Scores":
        """Scores of zero samples."""
        none = np.zeros(0, dtype=np.int64)
        return cls(sample_id=none, n_targets=none, log_likelihood=none.astype(np.float64))


def write_scores(path: Path, scores: Scores, *, head: str, checkpoint: str) -> None:
    """Write scores of samples as Parquet, with the head and checkpoint that they belong to.

    Parameters
    ----------
    head
        Record head of the checkpoint, hex.
    checkpoint
        Hash of the checkpoint's manifest, hex. The head is not enough: step 0 has the same head in every run, but
        different weights.
    """
    import pyarrow as pa

    columns = {field.name: getattr(scores, field.name) for field in fields(Scores)}
    write_table(path, pa.table(columns).replace_schema_metadata({"record_head": head, "checkpoint": checkpoint}))


def read_scores(path: Path, *, head: str, checkpoint: str) -> Scores | None:
    """Read scores from `write_scores`; None when the file is missing or its scores belong to another checkpoint."""
    if not path.exists():
        return None
    table = read_table(path)
    if table.schema.metadata != {b"record_head": head.encode(), b"checkpoint": checkpoint.encode()}:
        return None
    return Scores(**{field.name: table.column(field.name).to_numpy() for field in fields(Scores)})
