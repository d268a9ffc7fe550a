"""What a run measures and logs while it trains, and which losses it does not accept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from wellread.config import check
from wellread.config.flat import unit
from wellread.errors import UserError

OnBadLoss = Literal["stop", "skip"]
TRACKERS = ("tensorboard", "wandb")


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """Log, measurements, trackers."""

    log_every: int = field(default=10, metadata=unit("steps"))
    """Steps between lines of the log."""
    eval_every: int | None = None
    """Steps between measurements of losses of sealed samples (default: at checkpoints and steps 4, 16, 64, …)."""
    eval_samples: int = field(default=256, metadata=unit("samples"))
    """Sealed samples, at most one per document, whose losses each measurement records; they take turns."""
    generations: int = field(default=3, metadata=unit("samples"))
    """Number of sealed samples with prompts that the model answers at each checkpoint (generations.jsonl)."""
    on_bad_loss: OnBadLoss = "stop"
    """After a loss or gradient that is not finite, or a spike: stop the run, or skip the update."""
    spike_factor: float | None = None
    """A loss above this multiple of the median of the last 64 batches is a spike (default: no spikes)."""
    tracker: str = "tensorboard"
    """Where metrics are logged: tensorboard (files in the run directory), wandb, or tensorboard,wandb."""
    peak_tflops: float | None = None
    """Peak TFLOP/s of one device, to compute the utilization (MFU) (default: that of the GPU, if it is known)."""

    @property
    def trackers(self) -> list[str]:
        """Names of the trackers."""
        return self.tracker.split(",")

    def __post_init__(self) -> None:
        check.at_least_one(self, "log_every", "eval_every", "eval_samples")
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
