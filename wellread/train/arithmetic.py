"""How a rank's GPU computes: TF32 products, and operations that give the same bits each time."""

from __future__ import annotations

import os

from wellread.config import ModelConfig

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""Environment variable: cuBLAS uses one workspace per stream, without which the order of its sums can vary."""


def settle(config: ModelConfig, device: str) -> None:
    """Set it for this process, before it uses the GPU. On a CPU there is nothing to set.

    TF32 is turned off explicitly, because the environment of some containers turns it on.
    """
    if device != "cuda":
        return
    import torch
    from torch.utils import deterministic

    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    if config.deterministic:
        os.environ.setdefault(WORKSPACE, ":4096:8")
        torch.use_deterministic_algorithms(True)
        setattr(deterministic, "fill_uninitialized_memory", False)  # noqa: B010 - unknown to type checkers
