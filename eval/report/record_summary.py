"""Losses and counts of a run, from its record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from wellread.record.reader import Record

BATCHES_AT_ONCE = 4096


@dataclass(frozen=True)
class RecordSummary:
    """Losses and counts over all batches of a record."""

    losses: NDArray[np.float64]
    """Mean loss per target token of each batch, in nats, float64[batches]; nan for skipped batches."""
    samples: int
    """Number of distinct samples read; a skipped batch has taught nothing, so it is not a reading."""
    readings: int
    """Number of readings."""

    @classmethod
    def of(cls, record: Record, n_trainable: int) -> RecordSummary:
        """Read the record once, a few thousand batches at a time, so that memory does not depend on its length."""
        losses, was_read, readings = np.zeros(record.batches), np.zeros(n_trainable, dtype=np.bool_), 0
        for start in range(0, record.batches, BATCHES_AT_ONCE):
            stop = min(start + BATCHES_AT_ONCE, record.batches)
            columns = ["batch_id", "sample_id", "n_targets", "loss", "skipped"]
            table = record.table(columns=columns, batches=(start, stop))
            batch_id, sample_id, n_targets, loss, skipped = (table.column(name).to_numpy() for name in columns)
            places = batch_id - start
            losses[start:stop] = np.bincount(places, weights=loss * n_targets) / np.bincount(places, weights=n_targets)
            losses[batch_id[skipped]] = np.nan
            was_read[sample_id[~skipped]] = True
            readings += int((~skipped).sum())
        return cls(losses, int(was_read.sum()), readings)
