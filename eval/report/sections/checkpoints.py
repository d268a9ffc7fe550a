"""Section: the table of checkpoints, with the columns that other sections add."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.report.facts import Facts
from eval.section import Column, Section

if TYPE_CHECKING:
    from eval.report.record_summary import RecordSummary
    from wellread.checkpoint import Checkpoint

TEMPLATE = Path(__file__).with_name("checkpoints.html.j2")
LOSS_WINDOW = 10
"""Number of batches before a checkpoint over which its training loss is averaged."""


def section(facts: Facts, before: Sequence[Section]) -> Section:
    """One row per checkpoint."""
    columns = [column for section in before for column in section.columns]
    return Section(
        heading="Checkpoints",
        n=f"{len(facts.checkpoints):,} checkpoints.",
        help=f"Train loss is the mean over the {LOSS_WINDOW} batches before the checkpoint, in nats per target token; "
        "batches are those read since the previous checkpoint; the record head is the hash of everything read so far.",
        template=TEMPLATE.read_text(encoding="utf-8"),
        values={"columns": columns, "checkpoints": [_row(each, facts.read, columns) for each in facts.checkpoints]},
    )


def _row(checkpoint: Checkpoint, read: RecordSummary, columns: Iterable[Column]) -> dict[str, Any]:
    step, (start, stop) = checkpoint.step, checkpoint.batches
    before, holdout_loss = read.losses[max(0, step - LOSS_WINDOW) : step], checkpoint.manifest.get("holdout_loss")
    before = before[np.isfinite(before)]
    return {
        "step": f"{step:,}",
        "tokens": f"{checkpoint.tokens:,}",
        "batches": f"{start:,} … {stop - 1:,}" if stop > start else "none",
        "head": checkpoint.head,
        "loss": f"{before.mean():.3f}" if before.size else "–",
        "holdout": "–" if holdout_loss is None else f"{holdout_loss:.3f}",
        "cells": [column.cells.get(step, "–") for column in columns],
    }
