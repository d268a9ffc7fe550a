"""The schedule of the learning rate."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wellread.config import OptimConfig
    from wellread.planning.plan import Plan


def learning_rate(batch_id: int, *, peak: float, warmup: int, steps: int, floor: float) -> float:
    """Learning rate of one batch: linear warm-up over `warmup` batches, then cosine decay to ``floor * peak``.

    It depends only on the batch, so that resuming needs no scheduler state.
    """
    if batch_id < warmup:
        return peak * (batch_id + 1) / warmup
    progress = (batch_id - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def warmup_steps(warmup: float, steps: int) -> int:
    """Number of steps of warm-up, a fraction of all steps, rounded up. Decimal numbers are exact, as in `steps_of`."""
    return math.ceil(Fraction(str(warmup)) * steps)


def planned_rate(batch_id: int, plan: Plan, optim: OptimConfig) -> float:
    """Learning rate of one batch of a run."""
    peak, warmup = optim.lr or 0.0, plan.warmup_steps
    return learning_rate(batch_id, peak=peak, warmup=warmup, steps=plan.steps, floor=optim.min_lr)
