"""What a model has read between checkpoints and up to each: means of its metrics, weighted by times read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from eval.separation import Floats, Ints

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wellread.record.reader import Record

BATCHES_AT_ONCE = 4096
LOSS, PERPLEXITY = "loss", "perplexity"


@dataclass(frozen=True)
class InputMeans:
    """Means of one metric over what was read, float64[k] each, one per checkpoint; NaN where no reading has a value."""

    interval: Floats
    """Since the previous checkpoint of the list."""
    cumulative: Floats
    """Since the start of the run."""


def input_means(
    record: Record,
    steps: Sequence[int],
    metrics: Mapping[str, Floats],
    log_likelihoods: Mapping[str, Floats] | None = None,
    *,
    first: int = 0,
) -> dict[str, InputMeans]:
    """Means of metrics of the samples that were read, and of the recorded loss.

    A sample that was read twice counts twice. Samples without a value are left out of the means of this metric only.
    Batches that were skipped changed no weight and are left out. `loss` is the mean per target token, in nats, as
    recorded; `perplexity` is its exponential.

    Perplexities under other models are exp(-sum of log p / number of targets), the sums over all readings.

    Parameters
    ----------
    steps
        Steps of the checkpoints, ascending; the record has all their batches.
    metrics
        Name -> value of each trainable sample, float64[n_trainable]; NaN: none.
    log_likelihoods
        Name of a perplexity -> log p of the targets of each trainable sample under a model, nats, float64[n_trainable];
        NaN: none.
    first
        First batch of the first interval.
    """
    log_likelihoods = log_likelihoods or {}
    summed = {**metrics, **{name: -values for name, values in log_likelihoods.items()}}
    totals, counts = ({name: np.zeros(len(steps)) for name in (*summed, LOSS)} for _ in range(2))
    for interval, sample_id, n_targets, loss in _readings(record, first, np.asarray(steps)):

        def total(weights: Floats | Ints, places: Ints = interval) -> Floats:
            return np.bincount(places, weights=weights, minlength=len(steps)).astype(np.float64)

        totals[LOSS] += total(loss * n_targets)
        counts[LOSS] += total(n_targets)
        for name, values in summed.items():
            of_readings = values[sample_id]
            defined = np.isfinite(of_readings)
            totals[name] += total(np.where(defined, of_readings, 0.0))
            counts[name] += total(defined if name in metrics else n_targets * defined)
    means = {name: InputMeans(*_means(totals[name], counts[name])) for name in totals}
    perplexities = {PERPLEXITY: means[LOSS]} | {name: means[name] for name in log_likelihoods}
    return means | {name: InputMeans(np.exp(of.interval), np.exp(of.cumulative)) for name, of in perplexities.items()}


def batch_means(
    record: Record, metrics: Mapping[str, Floats], log_likelihoods: Mapping[str, Floats]
) -> dict[str, Floats]:
    """Means over what each batch of a record has read, as `input_means`: float64[batches], NaN for skipped batches."""
    parts = []
    for first in range(0, record.batches, BATCHES_AT_ONCE):
        steps = range(first + 1, min(first + BATCHES_AT_ONCE, record.batches) + 1)
        parts.append(input_means(record, steps, metrics, log_likelihoods, first=first))
    return {name: np.concatenate([part[name].interval for part in parts]) for name in parts[0]} if parts else {}


def _readings(record: Record, first: int, steps: Ints) -> Iterator[tuple[Ints, Ints, Ints, Floats]]:
    """Place of the interval, sample id, number of targets and loss of each reading, some thousand batches at a time."""
    columns = ["batch_id", "sample_id", "n_targets", "loss", "skipped"]
    for start in range(first, int(steps[-1]), BATCHES_AT_ONCE):
        stop = min(start + BATCHES_AT_ONCE, int(steps[-1]))
        table = record.table(columns=columns, batches=(start, stop))
        batch_id, sample_id, n_targets, loss, skipped = (table.column(name).to_numpy() for name in columns)
        learned = ~skipped
        interval = np.searchsorted(steps, batch_id[learned], "right")
        yield interval, sample_id[learned], n_targets[learned], loss[learned].astype(np.float64)


def _means(totals: Floats, counts: Floats) -> Iterator[Floats]:
    for total, count in ((totals, counts), (totals.cumsum(), counts.cumsum())):
        yield np.divide(total, count, out=np.full(total.size, np.nan), where=count > 0)
