"""Whether an order selects the samples that a run reads, so that they differ from sealed ones in more than reading."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.groups import readings
from eval.randomness import Randomness

if TYPE_CHECKING:
    from wellread.run import RunDirectory


def selection(run: RunDirectory, steps: Sequence[int]) -> str:
    """What the order of a run has selected at the last of these steps at which that matters; empty if at none.

    Sealed documents are a random draw from all documents. What a run has read is like them if it was drawn at random
    from all ordinary samples, or consists of all of them. Samples of insertions, and those that canaries displace, are
    not counted.
    """
    from wellread.corpus.read import Corpus
    from wellread.order.inserted import plain
    from wellread.order.permutation import ListedOrder
    from wellread.order.store import open_order
    from wellread.record.reader import Record

    if not run.manifest_file.exists():
        return ""
    identity: dict[str, Any] = run.manifest()["identity"]["order"]
    if identity["kind"] == "shuffle":
        return ""
    random, counted = Randomness.of(run), np.ones(Corpus.open(run.corpus).n_ordinary, dtype=np.bool_)
    counted[random.selected[random.selected < counted.size]] = False
    if random.is_one_draw and isinstance(order := plain(open_order(run)), ListedOrder):
        missing = counted.copy()
        missing[order.ids] = False
        if not missing.any():
            return ""
    batch_id, sample_id = readings(Record.open(run.record), max(steps, default=0))
    for step in sorted(steps, reverse=True):
        was_read = np.zeros(counted.size, dtype=np.bool_)
        before = sample_id[batch_id < step]
        was_read[before[before < counted.size]] = True
        n_read = int((was_read & counted).sum())
        if 0 < n_read < counted.sum():
            name = ":".join(filter(None, (identity["kind"], identity.get("by"))))
            return (
                f"the order ({name}) selects what is read: {n_read:,} of {int(counted.sum()):,} trainable samples up "
                f"to step {step:,}, so they may differ from sealed ones, which are of all kinds, in more than reading"
            )
    return ""
