"""What a run measures, tells and takes offence at while it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wellread.config import check
from wellread.errors import UserError

OnBadLoss = Literal["stop", "skip"]
TRACKERS = ("tensorboard", "wandb")


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """Log, measurements, trackers."""

    log_every: int = 10
    """Steps between lines of the log."""
    eval_every: int | None = None
    """Steps between measurements of the loss on sealed samples (default: at checkpoints alone)."""
    generations: int = 3
    """Sealed samples whose prompts the model continues at each checkpoint, to be looked at."""
    on_bad_loss: OnBadLoss = "stop"
    """A loss or gradient that is not finite, or a spike: stop the run, or skip the batch (read, not learned from)."""
    spike_factor: float | None = None
    """A loss above this many times the median of the last 64 batches is a spike (default: none is)."""
    tracker: str = "tensorboard"
    """Where numbers go: tensorboard (files in the run), wandb, or both with a comma between."""
    peak_tflops: float | None = None
    """TFLOP/s of one device at best, to tell which share of it is used (default: known GPUs' own)."""

    @property
    def trackers(self) -> list[str]:
        """Names of the trackers."""
        return self.tracker.split(",")

    def __post_init__(self) -> None:
        check.at_least_one(self, "log_every", "eval_every")
        if unknown := sorted(set(self.trackers) - set(TRACKERS)):
            raise UserError(
                f"--tracker {self.tracker}: unknown: {', '.join(unknown)}; choose from {', '.join(TRACKERS)}"
            )
        if self.peak_tflops is not None and not self.peak_tflops > 0:
            raise UserError(f"--peak_tflops {self.peak_tflops}: must be above 0")
        if self.generations < 0:
            raise UserError(f"--generations {self.generations}: must be at least 0")
        if self.spike_factor is not None and not self.spike_factor > 1:
            raise UserError(f"--spike_factor {self.spike_factor}: must be above 1 (times the median loss)")
