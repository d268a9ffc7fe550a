"""Section: curves of the training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.report.facts import Facts
from eval.section import Picture, Section


def section(facts: Facts, before: Sequence[Section]) -> Section | None:
    """The loss curve; None when no batch was learned from."""
    from wellread.plots.loss import loss_curve

    learned = np.flatnonzero(np.isfinite(facts.read.losses))
    if not learned.size:
        return None
    losses, skipped = facts.read.losses[learned], facts.read.losses.size - learned.size
    alt = f"Training loss goes from {losses[0]:.2f} to {losses[-1]:.2f} nats per target token."
    caption = "Mean loss of each batch as trained, from the record."
    figure = loss_curve(learned, losses, holdout=facts.holdout_losses)
    return Section(
        heading="Curves",
        n=f"{learned.size:,} batches{f', without {skipped:,} skipped ones' * (skipped > 0)}; "
        f"{len(facts.holdout_losses):,} checkpoints measured on the sealed holdout.",
        help="A training loss below the loss on the sealed holdout shows how much of what was learned is specific to "
        "the samples that were read.",
        pictures=[Picture("Loss", figure, alt, caption)],
    )
