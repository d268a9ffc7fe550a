"""The memory check: before anything is loaded, compare what the plan needs with what is free, on every node.

The plan knows the total memory; this check also sees what other processes use.
"""

from __future__ import annotations

import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from wellread.config import ClusterConfig
from wellread.errors import UserError
from wellread.planning import host_memory
from wellread.planning.plan import Plan
from wellread.run import RunDirectory
from wellread.train import ranks
from wellread.units import GIB

MOST_NAMED = 3
"""Maximum number of shortages in the message; on a large cluster there can be one per GPU."""


@dataclass(frozen=True, kw_only=True)
class FreeSpace:
    """Free memory and disk as one rank measures it, in bytes.

    None where another rank measures it, or the device is not used.
    """

    node: str
    """Host name."""
    host_free: int
    """Host memory that can still be allocated, within the rank's control group."""
    host_held: int
    """Host memory that this rank already uses; the estimate includes it."""
    gpu_free: int | None = None
    """Memory of this rank's GPU, including what PyTorch's allocator has reserved."""
    disk_free: int | None = None
    """Space on the disk with the run directory; only on rank 0."""
    disk_held: int = 0
    """Size of the run's checkpoints; the estimate includes them."""
    nvme_free: int | None = None
    """Space at --nvme_path, including what a killed attempt of this run left; only on the first rank of a node."""
    nvme_is_disk: bool = False
    """Whether the run directory and --nvme_path are on the same filesystem."""


def check(run: RunDirectory, config: ClusterConfig, plan: Plan) -> None:
    """Reject a plan that does not fit into free memory and disk. Collective: all ranks raise the same error.

    Raises
    ------
    UserError
        One line: which node has too little of what. Never for a plan that is forced or has no estimate.
    """
    if plan.forced or plan.needs is None:
        return
    short = shortages(plan, ranks.gather_objects(look(run, config, plan)))
    if short:
        more = f", and {len(short) - MOST_NAMED} more" * (len(short) > MOST_NAMED)
        raise UserError(
            f"not enough free memory or disk for {plan.strategy}: {'; '.join(short[:MOST_NAMED])}{more}. Free some, "
            "choose another --strategy (wellread plan compares them), or start anyway with --force"
        )


def look(run: RunDirectory, config: ClusterConfig, plan: Plan) -> FreeSpace:
    """Measure what is free for this rank.

    Parameters
    ----------
    config : ClusterConfig
        `nvme_path` is the run's folder on the NVMe disk, which the engine clears before it starts.
    """
    first, nvme = ranks.rank() == 0, None
    if plan.rung.on_nvme and config.nvme_path and ranks.local_rank() == 0:
        nvme = Path(config.nvme_path)
    return FreeSpace(
        node=socket.gethostname(),
        host_free=host_memory.available(),
        host_held=host_memory.private_bytes(),
        gpu_free=_gpu_free() if plan.machine.device == "cuda" else None,
        disk_free=shutil.disk_usage(run.path).free if first else None,
        disk_held=_size(run.checkpoints) if first else 0,
        nvme_free=shutil.disk_usage(nvme.parent).free + _size(nvme) if nvme else None,
        nvme_is_disk=nvme is not None and first and os.stat(nvme.parent).st_dev == os.stat(run.path).st_dev,
    )


def _gpu_free() -> int:
    import torch

    free, _ = torch.cuda.mem_get_info()
    return int(free + torch.cuda.memory_reserved())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def shortages(plan: Plan, measured: list[FreeSpace]) -> list[str]:
    """What is missing for the strategy of `plan`, one text per shortage, node by node.

    Host memory is estimated for the node with rank 0 and required on all nodes: the other nodes need a little less.

    Parameters
    ----------
    measured : list of FreeSpace
        One per rank, in rank order.
    """
    needs = plan.needs
    assert needs is not None
    # The CUDA context and NCCL's buffers exist before free memory is measured, so they are not counted again.
    on_gpu = needs["gpu_bytes"] - needs["parts"]["gpu"].get("CUDA context", 0)
    texts = []
    for start in range(0, plan.ranks, plan.machine.ranks_per_node):
        node = measured[start : start + plan.machine.ranks_per_node]
        first = node[0]
        host_free = min(rank.host_free for rank in node) + sum(rank.host_held for rank in node)
        disk = max(0, needs["disk_bytes"] - first.disk_held)
        compared: list[tuple[str, int | None, int]] = [
            ("host memory", host_free, needs["host_bytes"]),
            *((f"GPU {number}", rank.gpu_free, on_gpu) for number, rank in enumerate(node)),
            ("disk for checkpoints", first.disk_free, disk),
            ("NVMe", first.nvme_free, needs["nvme_bytes"] + disk * first.nvme_is_disk),
        ]
        texts += [
            f"{first.node} has {_gib(free)} GiB of {place}, {_gib(needed)} are needed"
            for place, free, needed in compared
            if free is not None and free < needed
        ]
    return texts


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f}"
