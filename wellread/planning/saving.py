"""At which steps checkpoints are saved."""

from __future__ import annotations

CHECKPOINTS_PER_RUN = 8
LOG_SCHEDULE_ENDS = 512


def save_steps(steps: int, every: int | None, schedule: str) -> tuple[int, ...]:
    """Steps at which a checkpoint is saved, ascending; 0 and the last step are always among them."""
    every = every or _round_number(steps / CHECKPOINTS_PER_RUN)
    regular = set(range(0, steps, every))
    if schedule == "log":
        early = {2**i for i in range(10) if 2**i < steps}
        regular = early | {step for step in regular if step > LOG_SCHEDULE_ENDS} | {0}
    return tuple(sorted(regular | {0, steps}))


def _round_number(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50 ... that is not below `least`."""
    scale = 1
    while True:
        for digit in (1, 2, 5):
            if digit * scale >= least:
                return digit * scale
        scale *= 10
