"""The optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from wellread.config import OptimConfig


def make_optimizer(model: nn.Module, config: OptimConfig, *, on_host: bool = False) -> torch.optim.Optimizer:
    """AdamW; weight decay only on matrices, not on norms and biases (parameters with fewer than two axes).

    Parameters
    ----------
    on_host : bool
        Use DeepSpeed's AdamW for optimizer state in host memory, instead of torch's fused AdamW.
    """
    import torch

    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    settings: dict[str, Any] = {"lr": config.lr or 0.0, "betas": (config.beta1, config.beta2), "eps": config.eps}
    if on_host:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        offloaded: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True, **settings)
        return offloaded
    return torch.optim.AdamW(groups, fused=True, **settings)


def replay_beta_powers(optimizer: Any, steps: int) -> None:
    """Set DeepSpeedCPUAdam's running powers of beta to their values after `steps` steps.

    Its kernel updates beta^t by one multiplication per step. When step numbers are not consecutive, as after loading,
    it computes pow(beta, t) instead, which differs in float32. Stepping a single element from 1 to `steps` makes
    resuming bit-exact.
    """
    import torch

    group = optimizer.param_groups[0]
    beta1, beta2 = group["betas"]
    one = [torch.zeros(1) for _ in range(4)]
    for step in range(1, steps + 1):
        optimizer.ds_opt_adam.adam_update(
            optimizer.opt_id, step, 0.0, beta1, beta2, group["eps"], 0.0, group["bias_correction"], *one
        )
