"""Ranks of a run: process group and collectives."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)


def start() -> None:
    """Join the process group that the environment describes (RANK, WORLD_SIZE, MASTER_ADDR, …)."""
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)


def stop() -> None:
    """Leave the process group once all ranks have called this; the process must end afterwards.

    A gloo group is not destroyed, because its destructor can wait forever for a peer that has already ended.
    """
    import torch.distributed as dist

    dist.barrier()
    if dist.get_backend() != "gloo":
        dist.destroy_process_group()


def rank() -> int:
    """Rank of this process, counted over all nodes."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Rank of this process, counted on its node."""
    return int(os.environ.get("LOCAL_RANK", 0))


def world_size() -> int:
    """Number of processes on all nodes."""
    return int(os.environ.get("WORLD_SIZE", 1))


def device() -> torch.device:
    """Device of this rank."""
    import torch

    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def barrier() -> None:
    """Wait for all ranks."""
    import torch.distributed as dist

    dist.barrier()


def from_rank0(value: int) -> int:
    """`value` of rank 0, on every rank."""
    import torch
    import torch.distributed as dist

    tensor = torch.tensor([value], dtype=torch.int64, device=device())
    dist.broadcast(tensor, src=0)
    return int(tensor.item())


def gather(rows: torch.Tensor) -> torch.Tensor:
    """Concatenate every rank's `rows` (same shape on all) along the first axis, in rank order."""
    import torch
    import torch.distributed as dist

    rows = rows.to(device()).contiguous()
    gathered = torch.empty((world_size() * rows.shape[0], *rows.shape[1:]), dtype=rows.dtype, device=rows.device)
    dist.all_gather_single(gathered, rows)
    return gathered.cpu()


def gather_objects(value: T) -> list[T]:
    """Every rank's `value`, in rank order."""
    import torch.distributed as dist

    gathered: list[T] = [value] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered
