"""Bad batches: a loss that is not finite or far above the recent ones; and whose samples they are."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from wellread.corpus.read import Corpus
    from wellread.record.reader import Record
    from wellread.record.writer import RecordedBatch

WINDOW = 64
"""Batches that a loss is compared with: the last ones that were read."""
LEAST = 8
"""Of these, batches that must have been learned from before a loss counts as a spike."""
IN_A_ROW = 10
"""So many skipped batches, one after the other, stop a run: then it is not the batches."""
NAMED = 8
"""Samples of a bad batch that are named."""

Past = list[tuple[float, bool]]
"""Loss of each batch, and whether it was skipped."""


class Guard:
    """Judges the batches of a run by their loss; the ranks judge alike, for they see the same losses.

    What it remembers can be read from the record, so a run that was interrupted judges as if it had not been.
    """

    def __init__(self, spike_factor: float | None, past: Iterable[tuple[float, bool]] = ()) -> None:
        self._factor = spike_factor
        self._past: deque[tuple[float, bool]] = deque(past, maxlen=WINDOW)

    def verdict(self, loss: float) -> str | None:
        """What is wrong with a batch of this mean loss; None when nothing is."""
        if not math.isfinite(loss):
            return f"loss is not finite ({loss})"
        learned = [past for past, skipped in self._past if not skipped]
        if self._factor is None or len(learned) < LEAST:
            return None
        usual = median(learned)
        if loss <= self._factor * usual:
            return None
        return f"loss {loss:.4f} is above {self._factor:g} x {usual:.4f}, the median of the last {len(learned)} batches"

    def note(self, loss: float, skipped: bool) -> None:
        """Remember a batch.

        Raises
        ------
        FloatingPointError
            When too many in a row were skipped.
        """
        self._past.append((loss, skipped))
        last = list(self._past)[-IN_A_ROW:]
        if len(last) == IN_A_ROW and all(skipped for _, skipped in last):
            raise FloatingPointError(
                f"{IN_A_ROW} batches in a row would have been skipped, so it is not the batches that are bad; "
                "begin a new run with a lower --optim.lr"
            )


def past_of(record: Record, step: int) -> Past:
    """What a guard at `step` remembers."""
    start = max(0, step - WINDOW)
    table = record.table(["batch_id", "loss", "n_targets", "skipped"], (start, step))
    _, loss, n, skipped = (table[name].to_numpy() for name in table.column_names)
    size = len(table) // max(1, step - start)
    return [
        (mean_loss(loss[rows], n[rows]), bool(skipped[rows][0]))
        for rows in (slice(k * size, (k + 1) * size) for k in range(step - start))
    ]


def mean_loss(losses: np.ndarray, n_targets: np.ndarray) -> float:
    """Mean loss over all target tokens of a batch, from the means of its samples."""
    return float((losses.astype(np.float64) * n_targets).sum() / n_targets.sum())


def named(corpus: Corpus, reading: RecordedBatch) -> str:
    """The samples of a batch, largest loss first, each with its set and rows: at most 8, and how many more."""
    ranked = np.argsort(-np.nan_to_num(reading.losses, nan=np.inf), kind="stable")
    shown = reading.sample_ids[ranked[:NAMED]].tolist()
    about = corpus.samples().select(["source", "rows"]).take(shown).to_pylist()
    words = [
        f"{sample} ({row['source']}:{','.join(map(str, row['rows']))}, loss {loss:.4g})"
        for sample, row, loss in zip(shown, about, reading.losses[ranked].tolist(), strict=False)
    ]
    more = f" and {len(ranked) - NAMED} more" if len(ranked) > NAMED else ""
    return f"samples, largest loss first: {', '.join(words)}{more}"
