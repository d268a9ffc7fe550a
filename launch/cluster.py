"""Clusters: what there is to run on, and starting ranks on it."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

from wellread.cli import print_error
from wellread.config import RunConfig
from wellread.plan import Cluster, Plan


def probe(config: RunConfig) -> Cluster:
    """Describe the cluster that `config` names, as far as a plan needs it.

    Raises
    ------
    ValueError
        When the cluster is unknown or cannot give that many nodes.
    """
    if config.cluster != "local":
        raise ValueError(f"--cluster {config.cluster}: unknown; this version starts ranks on the local machine: local")
    if config.nodes != 1:
        raise ValueError(f"--nodes {config.nodes}: the local cluster is one machine; choose 1")
    gpus = count_gpus()
    ranks = max(1, gpus) if config.ranks_per_node == "auto" else config.ranks_per_node
    if gpus and ranks > gpus:
        raise ValueError(f"--ranks_per_node {ranks}: this machine has {gpus} GPUs; choose at most that")
    return Cluster(kind=config.cluster, nodes=1, ranks_per_node=ranks, device="cuda" if gpus else "cpu")


def count_gpus() -> int:
    """GPUs that this process may use, counted without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    if visible is None or not devices:
        return devices
    return min(devices, len([part for part in visible.split(",") if part.strip() not in ("", "-1")]))


def environment(plan: Plan, attempt: int) -> dict[str, str]:
    """Variables that the ranks need beyond those of the launcher."""
    threads = max(1, len(os.sched_getaffinity(0)) // plan.ranks_per_node)
    variables = {
        "WELLREAD_ATTEMPT": str(attempt),
        "WELLREAD_LAUNCHER": str(os.getpid()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        # One cache of compiled ops per environment: two that share one rebuild each other's.
        "TORCH_EXTENSIONS_DIR": os.environ.get("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions")),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONFAULTHANDLER": "1",  # a rank that crashes outside Python leaves its stack in its log
    }
    if plan.device == "cpu":
        variables["DS_ACCELERATOR"] = "cpu"
    return variables


def start_local(arguments: list[str], plan: Plan, variables: dict[str, str]) -> int:
    """Start all ranks on this machine through torch's elastic launch API; return the job's exit code."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.update(variables)
    logging.disable(logging.ERROR)  # elastic's own lines; `launch` shows the first error of all ranks
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=plan.ranks_per_node,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",  # a free port
        local_addr="127.0.0.1",
        max_restarts=0,
        run_id=f"wellread-{os.getpid()}",
        logs_specs=DefaultLogsSpecs(),
        shutdown_timeout=SECONDS_TO_SAVE,
    )
    try:
        elastic_launch(settings, sys.executable)("-u", *arguments)
    except ChildFailedError as error:
        return _exit_code({rank: failure.exitcode for rank, failure in error.failures.items()})
    except SignalException as error:
        return 128 + error.sigval
    return 0


def _exit_code(codes: dict[int, int]) -> int:
    """The job's exit code from those of the ranks that failed (-S: signal S), and a line where a signal was the cause.

    A rank that a signal ended leaves no error behind, and the others fail because it is gone: it comes first. SIGTERM
    comes last: elastic sends it to the others when one has failed.
    """
    rank = min(codes, key=lambda rank: (codes[rank] == -signal.SIGTERM, codes[rank] > 0, rank))
    code = codes[rank]
    if code > 0:
        return code
    print_error(f"rank {rank} was ended by signal {-code} ({signal.Signals(-code).name})")
    return 128 - code


SECONDS_TO_SAVE = 600
"""How long a stopped run may take to save before it is killed."""
