"""Optimiser and learning-rate schedule."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from wellread.config import OptimConfig


def learning_rate(batch_id: int, *, peak: float, warmup: int, steps: int, floor: float) -> float:
    """Learning rate of one batch: linear warm-up over `warmup` batches, then cosine decay to ``floor * peak``.

    A function of the batch alone, so that resuming needs no scheduler state.
    """
    if batch_id < warmup:
        return peak * (batch_id + 1) / warmup
    progress = (batch_id - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices alone, never on norms and biases (parameters with fewer than two axes)."""
    import torch

    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr or 0.0,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
