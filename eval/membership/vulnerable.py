"""Samples whose membership is easiest to infer, from the recorded losses only: no model runs.

LT-IQR (Pollock et al. 2024, "Free record-level privacy risk evaluation through artifact-based methods"): the
interquartile range of a sample's losses over its readings. Samples with a large range were hard at first and were
learned by heart: those that attacks with many reference models identify best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from eval.separation import Floats, Ints
from wellread.errors import UserError

if TYPE_CHECKING:
    from wellread.run import RunDirectory

FEWEST_READINGS = 4
"""Readings that the range of a sample needs."""
HEADS = ["sample", "LT-IQR", "readings", "first loss", "last loss", "source", "rows"]


@dataclass(frozen=True, eq=False)
class Ranges:
    """The samples with enough readings, the largest range first."""

    sample_ids: Ints
    ranges: Floats
    """Interquartile range of the losses of each, float64[n], nats per target."""
    readings: Ints
    first: Floats
    """Loss of the first reading, float64[n]; `last` that of the last one."""
    last: Floats
    too_few: int
    """Number of samples that were read, but fewer than four times."""


def ranges_of(sample_ids: Ints, losses: Floats) -> Ranges:
    """LT-IQR of each sample with four readings or more; ties in the order of ids.

    Parameters
    ----------
    sample_ids, losses
        Of each reading in order of time, int64[readings] and float64[readings]. Quartiles are interpolated linearly.
    """
    order = np.argsort(sample_ids, kind="stable")
    ids, starts, counts = np.unique(sample_ids[order], return_index=True, return_counts=True)
    enough = np.flatnonzero(counts >= FEWEST_READINGS)
    values = losses[order].astype(np.float64)
    ends = starts + counts - 1
    iqr = np.zeros(len(enough))
    for count in np.unique(counts[enough]).tolist():  # samples with equally many readings are one array
        rows = np.flatnonzero(counts[enough] == count)
        traces = values[starts[enough[rows]][:, None] + np.arange(count)]
        low, high = np.quantile(traces, [0.25, 0.75], axis=1)
        iqr[rows] = high - low
    ranked = np.argsort(-iqr, kind="stable")
    top = enough[ranked]
    too_few = len(ids) - len(enough)
    return Ranges(ids[top], iqr[ranked], counts[top], values[starts[top]], values[ends[top]], too_few)


def ranges_of_run(run: RunDirectory) -> Ranges:
    """LT-IQR of the samples of a run, without canaries; skipped batches are not readings.

    Raises
    ------
    UserError
        When no sample was read four times.
    """
    from wellread.corpus.read import Corpus
    from wellread.record.reader import Record

    table = Record.open(run.record).table(["sample_id", "loss", "skipped"])
    sample_ids, losses, skipped = (table[name].to_numpy() for name in table.column_names)
    counted = ~skipped & (sample_ids < Corpus.open(run.corpus).n_ordinary)
    ranges = ranges_of(sample_ids[counted], losses[counted])
    if not ranges.sample_ids.size:
        most = int(np.bincount(sample_ids[counted]).max()) if counted.any() else 0
        raise UserError(
            f"--vulnerable: needs {FEWEST_READINGS} readings of a sample, but no sample of {run.path} has more "
            f"than {most:,}; train for more epochs"
        )
    return ranges


def listing(run: RunDirectory, count: int) -> tuple[list[str], list[list[object]], str]:
    """Heads and rows of the `count` samples with the largest range, with their source and rows; and a remark.

    Raises
    ------
    UserError
        When `count` is below 1, or no sample was read four times.
    """
    from wellread.corpus.read import Corpus

    if count < 1:
        raise UserError(f"--vulnerable {count}: must be at least 1")
    ranges = ranges_of_run(run)
    ids = ranges.sample_ids[:count]
    origins = Corpus.open(run.corpus).samples(["source", "rows"]).take(ids).to_pylist()
    rows: list[list[object]] = [
        [
            int(ids[i]),
            round(float(ranges.ranges[i]), 4),
            int(ranges.readings[i]),
            round(float(ranges.first[i]), 4),
            round(float(ranges.last[i]), 4),
            origins[i]["source"],
            ",".join(map(str, origins[i]["rows"])),
        ]
        for i in range(len(ids))
    ]
    remark = f"{len(ids):,} of {len(ranges.sample_ids):,} samples with {FEWEST_READINGS} readings or more"
    if ranges.too_few:
        remark += f"; {ranges.too_few:,} samples with fewer readings are left out"
    return HEADS, rows, remark
