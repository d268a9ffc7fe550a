"""Ranks of a run: process group and collectives."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from wellread.errors import UserError
from wellread.processes import STORE

if TYPE_CHECKING:
    import torch
    from torch.distributed import Store  # type: ignore[attr-defined]

T = TypeVar("T")
ALLOCATOR_VARIABLES = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}
"""Variables with the user's own settings of torch's allocator."""
PINNED = "pinned_max_cached_size_mb:1"
"""Without it, torch rounds pinned memory up to a power of two and keeps freed blocks: 44 GiB become 64."""
LOOPBACK = "127.0.0.1"
TIMEOUT = timedelta(minutes=30)


def start(device: str) -> None:
    """Join the process group that the environment describes (RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, STORE, MASTER_ADDR).

    When all ranks are on this node, none of their sockets listens beyond the loopback address.

    Parameters
    ----------
    device : str
        Kind of device that the plan chose: cpu or cuda. `device()` then follows from the group's backend.

    Raises
    ------
    UserError
        When the plan is for GPUs and torch finds none.
    """
    import torch.distributed as dist

    gpu = _own_gpu() if device == "cuda" else None
    store = _store_of_one_node()
    if store is not None:
        os.environ.update(dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), "lo"))
    number, ranks = (-1, -1) if store is None else (rank(), world_size())  # -1: torch reads the environment
    backend = "nccl" if gpu else "gloo"
    dist.init_process_group(backend, store=store, timeout=TIMEOUT, rank=number, world_size=ranks, device_id=gpu)


def _own_gpu() -> torch.device:
    """Make this rank's GPU the current one. A scheduler may show each rank only its own, which then has number 0."""
    import torch

    if not torch.cuda.is_available():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
        raise UserError(
            f"{socket.gethostname()}: the plan is for GPUs, but torch {torch.__version__}, built {built}, finds none; "
            "wellread doctor says why, and device: cpu in the cluster file trains without"
        )
    if not os.environ.keys() & ALLOCATOR_VARIABLES:
        with suppress(ValueError, RuntimeError):  # torch 2.11 does not know it
            torch._C._accelerator_setAllocatorSettings(PINNED)
    gpu = torch.device("cuda", local_rank() % torch.cuda.device_count())
    torch.cuda.set_device(gpu)
    return gpu


def _store_of_one_node() -> Store | None:
    """The store through which the ranks of this node find each other; None when there are ranks on other nodes."""
    from torch.distributed import FileStore, HashStore, TCPStore  # type: ignore[attr-defined]

    if path := os.environ.get(STORE):
        return FileStore(path, -1)  # -1: the launcher removes the file
    if world_size() == 1:
        return HashStore()
    if int(os.environ.get("LOCAL_WORLD_SIZE", 0)) != world_size():
        return None
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun, which has a store of its own
        return None
    port, descriptor = int(os.environ["MASTER_PORT"]), None
    if rank() == 0:  # a TCPStore that opens its own socket listens on all interfaces
        listener = socket.create_server((LOOPBACK, port))
        descriptor = listener.detach()  # the store closes it
    return TCPStore(
        LOOPBACK, port, world_size(), rank() == 0, TIMEOUT, wait_for_workers=False, master_listen_fd=descriptor
    )


def stop() -> None:
    """Leave the process group once all ranks have called this; the process must end afterwards.

    A gloo group is not destroyed, because its destructor can wait forever for a peer that has already ended.
    """
    import torch.distributed as dist

    dist.barrier()
    if dist.get_backend() != "gloo" and not _host_group.cache_info().currsize:
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
    """Device of this rank: a GPU if it has joined a group of GPUs."""
    import torch
    import torch.distributed as dist

    on_gpu = dist.is_initialized() and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def barrier() -> None:
    """Wait for all ranks."""
    import torch.distributed as dist

    dist.barrier()


def from_rank0(value: int) -> int:
    """`value` of rank 0, on every rank."""
    import torch
    import torch.distributed as dist

    if world_size() == 1:
        return value
    tensor = torch.tensor([value], dtype=torch.int64, device=device())
    dist.broadcast(tensor, src=0)
    return int(tensor.item())


@cache
def _host_group() -> Any:
    """A group of all ranks, which have GPUs, that exchanges host memory. Collective."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=TIMEOUT)


def add_up(values: torch.Tensor) -> torch.Tensor:
    """Add every rank's `values`, in place; the host does not wait for a GPU."""
    import torch.distributed as dist

    if world_size() > 1:
        dist.all_reduce(values)
    return values


def gather(rows: torch.Tensor, *, on_host: bool = False) -> torch.Tensor:
    """Concatenate every rank's `rows` (same shape on all) along the first axis, in rank order.

    Parameters
    ----------
    on_host : bool
        `rows` are in host memory, and the host must not wait for the GPUs.
    """
    import torch
    import torch.distributed as dist

    if world_size() == 1:
        return rows.cpu()
    rows = rows.to("cpu" if on_host else device()).contiguous()
    gathered = torch.empty((world_size() * rows.shape[0], *rows.shape[1:]), dtype=rows.dtype, device=rows.device)
    name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"  # in torch 2.11
    group = _host_group() if on_host and dist.get_backend() != "gloo" else None  # None: that of all collectives
    getattr(dist, name)(gathered, rows, group=group)
    return gathered.cpu()


def gather_objects(value: T) -> list[T]:
    """Every rank's `value`, in rank order; they travel as JSON, because torch would unpickle what a socket delivers.

    Parameters
    ----------
    value : T
        Of the types of JSON (a tuple arrives as a list), or a dataclass with such fields.
    """
    import torch

    kind: Any = type(value) if is_dataclass(value) else None
    text = json.dumps(asdict(value) if kind else value).encode()  # type: ignore[call-overload]
    sizes = gather(torch.tensor([len(text)])).tolist()
    padded = torch.zeros((1, max(sizes)), dtype=torch.uint8)
    padded[0, : len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    parts: list[Any] = [json.loads(bytes(row[:size].tolist())) for row, size in zip(gather(padded), sizes, strict=True)]
    return [kind(**part) for part in parts] if kind else parts
