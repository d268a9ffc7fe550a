"""Bad losses: detect a loss that is not finite or far above recent losses, and name the samples of the batch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from wellread.corpus.read import Corpus
    from wellread.record.reader import Record
    from wellread.record.writer import RecordedBatch

WINDOW = 64
"""Number of recent batches that a loss is compared with."""
LEAST = 8
"""Minimum number of them that the model was trained on before a loss can count as a spike."""
IN_A_ROW = 10
"""A run stops after this many consecutive skipped batches: then the batches are not the cause."""
NAMED = 8
"""Maximum number of samples of a bad batch in a message."""

Past = list[tuple[float, bool]]
"""Loss of each batch, and whether it was skipped."""


class Guard:
    """Decides from its loss whether a batch is bad; all ranks decide the same, because they see the same losses.

    Its memory can be restored from the record, so a resumed run decides as an uninterrupted one.
    """

    def __init__(self, spike_factor: float | None, past: Iterable[tuple[float, bool]] = ()) -> None:
        self.factor = spike_factor
        self.past: deque[tuple[float, bool]] = deque(past, maxlen=WINDOW)
        """Loss of each recent batch, and whether it was skipped."""

    def verdict(self, loss: float) -> str | None:
        """What is wrong with a batch of this mean loss; None if it is not bad."""
        if not math.isfinite(loss):
            return f"loss is not finite ({loss})"
        trained = [past for past, skipped in self.past if not skipped]
        if self.factor is None or len(trained) < LEAST:
            return None
        usual = median(trained)
        if loss <= self.factor * usual:
            return None
        return f"loss {loss:.4f} is above {self.factor:g} x {usual:.4f}, the median of the last {len(trained)} batches"

    def note(self, loss: float, skipped: bool) -> None:
        """Remember a batch.

        Raises
        ------
        FloatingPointError
            When too many consecutive batches were skipped.
        """
        self.past.append((loss, skipped))
        last = list(self.past)[-IN_A_ROW:]
        if len(last) == IN_A_ROW and all(skipped for _, skipped in last):
            raise FloatingPointError(
                f"{IN_A_ROW} consecutive batches would have been skipped, so the batches are not the cause; "
                "start a new run with a lower --optim.lr"
            )


def past_of(record: Record, step: int) -> Past:
    """What a guard remembers at `step`."""
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
    sums = np.zeros(length_of_halves(len(losses)))
    sums[: len(losses)] = losses.astype(np.float64) * n_targets
    return float(sum_of_halves(sums) / n_targets.sum())


def length_of_halves(count: int) -> int:
    """The smallest power of two that is not below `count`."""
    return 1 << (count - 1).bit_length()


def sum_of_halves(values: Any) -> Any:
    """Sum of an array or tensor whose length is a power of two, with the same rounding on every device.

    Its second half is added to its first until one value is left. Other sums have an order of their own.
    """
    while len(values) > 1:
        half = len(values) // 2
        values = values[:half] + values[half:]
    return values[0]


def name_samples(corpus: Corpus, reading: RecordedBatch) -> str:
    """Up to 8 samples of a batch, largest loss first, each with its data set and rows, and the number of others."""
    ranked = np.argsort(-np.nan_to_num(reading.losses, nan=np.inf), kind="stable")
    sample_ids = reading.sample_ids[ranked[:NAMED]].tolist()
    origins = corpus.samples().select(["source", "rows"]).take(sample_ids).to_pylist()
    texts = [
        f"{sample} ({row['source']}:{','.join(map(str, row['rows']))}, loss {loss:.4g})"
        for sample, row, loss in zip(sample_ids, origins, reading.losses[ranked].tolist(), strict=False)
    ]
    more = f" and {len(ranked) - NAMED} more" if len(ranked) > NAMED else ""
    return f"samples, largest loss first: {', '.join(texts)}{more}"
