"""Where the ranks of a run are, and how the training state is partitioned."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from wellread.config import check
from wellread.config.flat import unit
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
    """Nodes, ranks, strategy."""

    name: str = "local"
    """Where the ranks run: local, hostfile, slurm, or a cluster file (FILE.yaml)."""
    nodes: int = field(default=1, metadata=unit("node"))
    """Number of nodes."""
    ranks_per_node: int | Literal["auto"] = "auto"
    """Ranks per node; auto is one per GPU, or 1 on a CPU."""
    micro_batch_size: int | None = None
    """Samples per forward pass of one rank (default: chosen by the plan)."""
    strategy: Strategy = "auto"
    """How the training state is partitioned over ranks; auto: chosen by the plan."""
    ds_config: str | None = None
    """Your DeepSpeed file instead of a strategy, without what the plan sets, e.g. batch sizes (default: none)."""
    nvme_path: str | None = None
    """Directory on each node's NVMe disk, for strategies that offload to NVMe (default: none)."""
    activation_checkpointing: Switch = "auto"
    """Recompute activations in the backward pass instead of keeping them; auto is off."""
    compile: Switch | bool = field(default="auto", metadata={"bare": "on"})
    """Compile each layer with torch.compile: up to a minute at the start, then faster steps. Only with ddp; auto: where
    --fast takes it and it pays within the run."""
    fast: Switch = "auto"
    """Faster ways to compute the same batch: auto takes those that docs/benchmarks.md proves on these GPUs (equal
    losses, and a gain), on takes all that are possible, off none. The plan lists them."""

    def __post_init__(self) -> None:
        check.not_empty(self, ds_config="ds_config", nvme_path="nvme_path")
        check.at_least_one(self, "micro_batch_size", "nodes")
        if self.ranks_per_node != "auto" and self.ranks_per_node < 1:
            raise UserError(f"--ranks_per_node {self.ranks_per_node}: must be at least 1, or auto")
        if isinstance(self.compile, bool):  # --compile true, compile: on in YAML, or a run of an older version
            object.__setattr__(self, "compile", "on" if self.compile else "off")
        if self.compile == "on" and not self.may_be_ddp:
            raise UserError("--compile: works only with ddp; leave it out, or leave out --strategy and --ds_config")

    @property
    def may_be_ddp(self) -> bool:
        """Whether the settings allow the strategy ddp."""
        return self.strategy in ("auto", "ddp") and not self.ds_config
