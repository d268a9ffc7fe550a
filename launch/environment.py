"""Environment variables that all ranks get in addition to those of the launcher."""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path

from launch.cluster import ClusterFile
from wellread.models.directories import SEARCH_PATH
from wellread.planning.phases import CACHED_KERNELS

INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Variables from which Gloo and NCCL read the network interface."""

KERNELS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
"""Variable with the number of matrix products for which oneDNN keeps compiled kernels."""

WAITING = "OMP_WAIT_POLICY"
"""Variable that says whether threads that wait for each other spin."""

LOAD = Path("/proc/loadavg")
LOOKS = 10
"""How often the threads that want to run are counted."""


def variables(cluster: ClusterFile, device: str, cores: int | None) -> dict[str, str]:
    """Return the variables of ranks on `device` with `cores` cores each (None: unknown)."""
    python = Path(cluster.python).parent.parent if cluster.python else Path(sys.prefix)
    values = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores or 1))),
        # One cache of compiled ops per environment: two environments that share a cache rebuild each other's ops.
        "TORCH_EXTENSIONS_DIR": os.environ.get("TORCH_EXTENSIONS_DIR", str(python / "torch_extensions")),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUTF8": "1",  # files and pipes of libraries too, in any locale
        "PYTHONFAULTHANDLER": "1",  # a rank that crashes outside Python writes its stack to its log
    }
    if folders := os.environ.get(SEARCH_PATH):  # absolute paths, since the ranks start in another folder
        paths = [str(Path(folder).expanduser().resolve()) for folder in folders.split(os.pathsep) if folder]
        values[SEARCH_PATH] = os.pathsep.join(paths)
    if device == "cpu":
        values["DS_ACCELERATOR"] = "cpu"
        if WAITING in os.environ:
            values[WAITING] = os.environ[WAITING]
        elif not _have_cores(values["OMP_NUM_THREADS"], cores) or (cluster.kind == "local" and _is_busy()):
            # Threads that spin while they wait would take the core from the one that they wait for.
            values[WAITING] = "passive"
        # oneDNN keeps the kernels of the last 1,024 products by default.
        values[KERNELS] = os.environ.get(KERNELS, str(CACHED_KERNELS))
        values["CUDA_VISIBLE_DEVICES"] = ""  # no library of a rank may choose another device than the plan
    if cluster.interface:
        values |= dict.fromkeys(INTERFACE_VARIABLES, cluster.interface)
    return values | cluster.environment


def _is_busy() -> bool:
    """Whether more processes want to run on this machine than it has cores: over the last minute, and now.

    After a run on all cores the average stays high for a minute, although the cores are free.
    """
    cores = os.cpu_count() or 1
    return os.getloadavg()[0] > cores and _running() >= cores


def _running() -> float:
    """Number of other threads on this machine that want to run now: the mean over a tenth of a second."""
    if not LOAD.is_file():
        return float("inf")  # unknown
    counts = []
    for _ in range(LOOKS):
        time.sleep(0.1 / LOOKS)
        running, _, _ = LOAD.read_text(encoding="ascii").split()[3].partition("/")
        counts.append(int(running) - 1)  # without this thread
    return statistics.mean(counts)


def _have_cores(threads: str, cores: int | None) -> bool:
    """Whether each of a rank's threads has a core; `threads` may be a list, for nested teams."""
    first = threads.partition(",")[0].strip()
    return first.isdecimal() and int(first) <= (cores or 0)
