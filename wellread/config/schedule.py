"""How long a run trains, in which order, and with which optimizer."""

from __future__ import annotations

from dataclasses import dataclass, field

from wellread.config import check
from wellread.config.flat import unit
from wellread.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Steps, batches and their order."""

    steps: int | None = None
    """Number of optimizer steps; overrides epochs (default: as many as the epochs have)."""
    epochs: float | None = None
    """Number of times that all trainable samples are read (default: that of the model in configs/models.yaml)."""
    batch_size: int | None = None
    """Samples per step, over all ranks and accumulation (default: that of the model in configs/models.yaml)."""
    order: str = "shuffle"
    """Order of the samples: shuffle, sequential, sorted:METRIC:asc, sorted:METRIC:desc, filter:METRIC>NUMBER,
    file:IDS.npy or curriculum:FILE.yaml (docs/orders.md)."""
    order_control: bool = False
    """Control experiment of a sorted order, a file or a curriculum: the same readings in random order."""
    seed: int = 0
    """Seed of initial weights, order and dropout."""

    def __post_init__(self) -> None:
        check.at_least_one(self, "steps", "batch_size")
        if self.epochs is not None and not self.epochs > 0:
            raise UserError(f"--epochs {self.epochs}: must be above 0")
        if not 0 <= self.seed < 2**64:
            raise UserError(f"--seed {self.seed}: must be at least 0 and below 2^64")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warmup and cosine decay."""

    lr: float | None = None
    """Peak learning rate (default: that of the model in configs/models.yaml; with LoRA ten times that)."""
    beta1: float = 0.9
    """Decay rate of the first moment."""
    beta2: float = 0.95
    """Decay rate of the second moment."""
    eps: float = 1e-8
    """Added to the square root of the second moment."""
    weight_decay: float = 0.01
    """Decoupled weight decay; norms and biases are excluded."""
    clip: float = 1.0
    """Maximum 2-norm of the gradient; 0 turns clipping off."""
    warmup: float = field(default=0.03, metadata=unit("of the steps"))
    """Warmup as a fraction of all steps."""
    min_lr: float = field(default=0.1, metadata=unit("of the peak"))
    """Final learning rate as a fraction of the peak."""

    def __post_init__(self) -> None:
        if self.lr is not None and not self.lr > 0:
            raise UserError(f"--optim.lr {self.lr}: must be above 0")
        for name in ("beta1", "beta2", "warmup", "min_lr"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"--optim.{name} {value}: must be between 0 and 1")
        for name in ("weight_decay", "clip"):
            value = getattr(self, name)
            if not value >= 0:
                raise UserError(f"--optim.{name} {value}: must be at least 0")
        if not self.eps > 0:
            raise UserError(f"--optim.eps {self.eps}: must be above 0")
