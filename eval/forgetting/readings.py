"""The first reading of each sample, its recorded loss and its learning rate; and the cohorts that follow from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from eval.groups import READ, Groups
from eval.membership.divisions import divide
from eval.separation import Floats, Ints

if TYPE_CHECKING:
    from wellread.run import RunDirectory

COHORTS = 8
"""Number of cohorts by batch of the first reading."""
RATES = 5
"""Number of cohorts by learning rate, between 0 and its peak."""


@dataclass(frozen=True, eq=False)
class Readings:
    """First readings of a run; skipped batches are not readings."""

    batches: Ints
    """Batch of each sample's first reading, int64[n_trainable]; -1 if it was never read."""
    losses: Floats
    """Loss recorded there, float64[n_trainable], nats per target: under the weights before the update."""
    rates: Floats
    """Learning rate of each batch of the run, float64[batches]."""

    @property
    def steps(self) -> Ints:
        """Batches of the first readings, of the samples that were read."""
        return self.batches[self.batches >= 0]

    @classmethod
    def of(cls, run: RunDirectory, groups: Groups) -> Readings:
        """First readings until the last checkpoint of a run."""
        from wellread.planning.plan import Plan
        from wellread.planning.rate import planned_rate
        from wellread.record.reader import Record

        table = Record.open(run.record).table(["batch_id", "sample_id", "loss", "skipped"], (0, groups.last))
        learned = ~table["skipped"].to_numpy()
        batch_ids, sample_ids, recorded = (table[name].to_numpy()[learned][::-1] for name in table.column_names[:3])
        batches, losses = np.full(groups.corpus.n_trainable, -1), np.full(groups.corpus.n_trainable, np.nan)
        batches[sample_ids], losses[sample_ids] = batch_ids, recorded  # from the last to the first reading
        optim, plan = run.config().optim, Plan.open(run.plan_file)
        rates = [planned_rate(i, plan, optim) for i in range(groups.last)]
        return cls(batches, losses, np.array(rates))

    def cohorts(self, groups: Groups, step: int) -> Iterator[tuple[str, Ints]]:
        """Name and samples, ascending, of each cohort of the samples that were read before `step`."""
        read = groups.at(step)[READ]
        if not read.size:
            return
        yield READ, read
        for name, (members, _) in divide(["age", "times"], groups, step).items():
            yield name, members
        batches = self.batches[read]
        bounds = np.unique(np.linspace(0, int(batches.max()) + 1, COHORTS + 1).round().astype(np.int64))
        for low, high in pairwise(bounds.tolist()):
            yield f"batch:{low}-{high}", read[(low <= batches) & (batches < high)]
        rates, edges = self.rates[batches], np.linspace(0, float(self.rates.max()), RATES + 1)
        edges[-1] = np.inf  # the peak belongs to the last cohort
        for i in range(RATES):
            yield (
                f"lr:{edges[i]:.3g}-{self.rates.max() * (i + 1) / RATES:.3g}",
                read[(edges[i] <= rates) & (rates < edges[i + 1])],
            )
