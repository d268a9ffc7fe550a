"""The gate: before anything is loaded, what the plan needs is compared with what is really free, on every node.

The plan knows how much memory there is; this knows how much of it others have taken.
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
"""Shortages that the message names; on a large cluster there may be one per GPU."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """What one rank finds, in bytes; None where another rank looks, or there is nothing to look at."""

    node: str
    """Host name."""
    host_free: int
    """Host memory that can still be taken, within the rank's control group."""
    host_held: int
    """Host memory that this rank holds already; the prediction counts it too."""
    gpu_free: int | None = None
    """Of this rank's GPU, what its allocator holds included."""
    disk_free: int | None = None
    """Where the run directory is; rank 0 alone."""
    disk_held: int = 0
    """Taken by the run's checkpoints; the prediction counts them too."""
    nvme_free: int | None = None
    """At --nvme_path, what a killed attempt of this run left there included; the first rank of each node."""
    nvme_is_disk: bool = False
    """Whether both are one filesystem."""


def check(run: RunDirectory, config: ClusterConfig, plan: Plan) -> None:
    """Refuse a plan that what is free cannot hold. Collective: every rank calls it, and all raise the same.

    Raises
    ------
    UserError
        One line: which nodes are short of what. Never for a plan that is forced, or predicts nothing.
    """
    if plan.forced or plan.needs is None:
        return
    short = shortages(plan, ranks.gather_objects(look(run, config, plan)))
    if short:
        more = f", and {len(short) - MOST_NAMED} more" * (len(short) > MOST_NAMED)
        raise UserError(
            f"too little is free for {plan.strategy}: {'; '.join(short[:MOST_NAMED])}{more}. Free it, choose another "
            "--strategy (launch plan compares them), or start all the same with --force"
        )


def look(run: RunDirectory, config: ClusterConfig, plan: Plan) -> Room:
    """What this rank finds free.

    Parameters
    ----------
    config : RunConfig
        `nvme_path` is the run's own folder there, which the engine clears before it begins.
    """
    first, nvme = ranks.rank() == 0, None
    if plan.rung.on_nvme and config.nvme_path and ranks.local_rank() == 0:
        nvme = Path(config.nvme_path)
    return Room(
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


def shortages(plan: Plan, rooms: list[Room]) -> list[str]:
    """What is missing for the strategy of `plan`, in words, node by node.

    Host memory is predicted for the node with rank 0, and is asked of all: the others need a little less.

    Parameters
    ----------
    rooms : list of Room
        One per rank, in their order.
    """
    needs = plan.needs
    assert needs is not None
    # The context and NCCL's buffers are there before the first number is taken, so no longer free.
    on_gpu = needs["gpu_bytes"] - needs["parts"]["gpu"].get("CUDA context", 0)
    found = []
    for start in range(0, plan.ranks, plan.machine.ranks_per_node):
        node = rooms[start : start + plan.machine.ranks_per_node]
        first = node[0]
        host_free = min(room.host_free for room in node) + sum(room.host_held for room in node)
        disk = max(0, needs["disk_bytes"] - first.disk_held)
        compared: list[tuple[str, int | None, int]] = [
            ("host memory", host_free, needs["host_bytes"]),
            *((f"GPU {number}", room.gpu_free, on_gpu) for number, room in enumerate(node)),
            ("disk for checkpoints", first.disk_free, disk),
            ("NVMe", first.nvme_free, needs["nvme_bytes"] + disk * first.nvme_is_disk),
        ]
        found += [
            f"{first.node} has {_gib(free)} GiB of {place}, {_gib(needed)} are needed"
            for place, free, needed in compared
            if free is not None and free < needed
        ]
    return found


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f}"
