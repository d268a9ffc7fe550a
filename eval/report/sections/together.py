"""Section: several runs next to each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.report.facts import Facts
from eval.section import Picture, Section, Table


def section(facts: Sequence[Facts], names: Sequence[str]) -> Section:
    """Losses of all runs in one figure, and one row per run."""
    from wellread.plots.loss import compare_losses

    curves, rows = {}, []
    for name, each in zip(names, facts, strict=True):
        learned = np.flatnonzero(np.isfinite(each.read.losses))
        if learned.size:
            curves[name] = (learned, each.read.losses[learned])
        last, held_out = each.checkpoints[-1] if each.checkpoints else None, each.holdout_losses
        rows.append(
            [
                name,
                each.run.config().model.name,
                each.record.batches,
                last.tokens if last else None,
                each.read.samples,
                float(each.read.losses[learned][-1]) if learned.size else None,
                held_out[-1][1] if held_out else None,
            ]
        )
    picture = Picture(
        "Loss of the runs",
        compare_losses(curves),
        f"Moving averages of the training losses of {len(curves)} runs.",
        "Moving average of the training loss of each run. Compare runs only on the same data and tokenizer.",
    )
    heads = ("run", "model", "batches", "tokens", "samples read", "last training loss", "last holdout loss")
    return Section(
        heading="The runs next to each other",
        n=f"{len(facts):,} runs.",
        help="Differences between runs that differ only in their seed show how large chance is.",
        pictures=[picture] if curves else [],
        tables=[Table("Runs; losses in nats per target token", heads, rows)],
    )
