"""The machines that the ranks run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wellread.units import GIB

Place = Literal["gpu", "host", "disk", "nvme"]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Nodes, their ranks and their memory; sizes in GiB, None when unknown: then no limit is checked."""

    cluster: str = "local"
    """Kind of the cluster: local, hostfile or slurm."""
    device: str = "cuda"
    """cuda or cpu."""
    nodes: int = 1
    ranks_per_node: int = 1
    gpu: str | None = None
    """Name of the GPUs, as the driver gives it; None when unknown."""
    gpu_mem: float | None = None
    """Per GPU."""
    host_mem: float | None = None
    """Per node."""
    disk: float | None = None
    nvme: float | None = None
    """Free on each node's NVMe disk."""

    @property
    def ranks(self) -> int:
        """Ranks of all nodes together."""
        return self.nodes * self.ranks_per_node

    def limit(self, place: Place) -> float | None:
        """Size of a kind of memory in bytes; None: no limit."""
        sizes = {"gpu": self.gpu_mem, "host": self.host_mem, "disk": self.disk, "nvme": self.nvme}
        size = sizes[place]
        return None if size is None else size * GIB
