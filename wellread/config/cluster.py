"""Where the ranks of a run are, and how its state is spread over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wellread.config import check
from wellread.errors import UserError

Strategy = Literal[
    "auto",
    "ddp",
    "zero1",
    "zero2",
    "zero3",
    "zero2-offload",
    "zero3-partial",
    "zero3-offload",
    "zero3-nvme",
]
Switch = Literal["auto", "on", "off"]


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Machines, ranks, strategy."""

    name: str = "local"
    """Where the ranks run."""
    nodes: int = 1
    """Machines."""
    ranks_per_node: int | Literal["auto"] = "auto"
    """Processes per machine (auto: its GPUs, or 1)."""
    micro_batch_size: int | None = None
    """Samples per forward pass of one rank (default: chosen by the plan)."""
    strategy: Strategy = "auto"
    """How the model's state is spread over ranks."""
    ds_config: str | None = None
    """Your own DeepSpeed file instead of the strategy's; it sets nothing that the plan owns."""
    nvme_path: str | None = None
    """Directory on each node's NVMe disk, for strategies that offload there."""
    activation_checkpointing: Switch = "auto"
    """Compute activations again in backward instead of keeping them (auto: off)."""
    compile: bool = False
    """Compile the model's layers with torch.compile: half a minute at the start, faster steps. Under ddp alone."""

    def __post_init__(self) -> None:
        check.not_empty(self, ds_config="ds_config", nvme_path="nvme_path")
        check.at_least_one(self, "micro_batch_size", "nodes")
        if self.ranks_per_node != "auto" and self.ranks_per_node < 1:
            raise UserError(f"--ranks_per_node {self.ranks_per_node}: must be at least 1, or auto")
        if self.compile and not self.may_be_ddp:
            raise UserError("--compile: is for ddp; leave it out, or --strategy and --ds_config")

    @property
    def may_be_ddp(self) -> bool:
        """Whether nothing is asked for that would make it another strategy."""
        return self.strategy in ("auto", "ddp") and not self.ds_config
