"""How much memory the nodes of a cluster have: given by flags or the cluster's file, else asked of the devices."""

from __future__ import annotations

import re
import subprocess

from launch.cluster import ClusterFile, count_gpus
from wellread.planning import host_memory
from wellread.units import GIB


def of(cluster: ClusterFile, gpu_mem: float | None, host_mem: float | None) -> tuple[float | None, float | None]:
    """GiB of each GPU and of each node: what is given, else what this machine or SLURM says; None where nobody does."""
    gpu, host = cluster.gpu_mem, cluster.memory
    if cluster.kind == "local":
        gpu, host = gpu or _gpu_mem(), host or _host_mem()
    elif cluster.kind == "slurm" and host is None:
        host = _slurm_memory(cluster)
    return gpu if gpu_mem is None else gpu_mem, host if host_mem is None else host_mem


def _host_mem() -> float:
    return host_memory.total() / GIB


def _gpu_mem() -> float | None:
    if not count_gpus():
        return None
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return min((int(line) / 1024 for line in done.stdout.split() if line.isdigit()), default=None)


def _slurm_memory(cluster: ClusterFile) -> float | None:
    """RealMemory of the smallest node of the partition, or of the default one, which sinfo marks with a star."""
    partition = ["--partition", cluster.partition] if cluster.partition else []
    try:
        done = subprocess.run(
            ["sinfo", "--noheader", "--Node", *partition, "--format", "%P %m"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    named = r"\S+" if cluster.partition else r"\S+\*"
    found = re.findall(rf"^{named} (\d+)\+?$", done.stdout, re.MULTILINE)
    return min((int(size) / 1024 for size in found), default=None)
