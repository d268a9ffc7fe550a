"""The local cluster: all ranks run on this machine."""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from launch import children, devices, ladder, ops
from launch.backends import elastic
from launch.backends.attended import Attended
from launch.backends.base import Evaluation
from wellread.errors import UserError
from wellread.planning import deepspeed_file, host_memory
from wellread.planning.machine import Machine
from wellread.planning.plan import Plan
from wellread.run import RunDirectory
from wellread.units import GIB

if TYPE_CHECKING:
    from launch.checks.check import Check
    from launch.checks.node import Request


class Local(Attended):
    """All ranks on this machine."""

    def probe(self, nodes: int, ranks_per_node: int | Literal["auto"]) -> Machine:
        """Return this machine with one rank per GPU, or any number of ranks on its CPUs."""
        self._check_nodes(nodes)
        gpus = 0 if self.file.device == "cpu" or self.lacks_gpus() else devices.count_gpus()
        if self.file.device == "cuda" and not gpus:
            raise UserError(f"--cluster {self.file.name}: device is cuda, but {self.lacks_gpus()}")
        device = "cuda" if gpus else "cpu"
        machine = self._described(nodes, ranks_per_node, device, gpus or 1, gpus, "this machine's GPUs")
        return replace(machine, gpu=devices.gpu_name()) if gpus else machine

    def _check_nodes(self, nodes: int) -> None:
        if nodes != 1:
            raise UserError(f"--nodes {nodes}: the local cluster is one machine; choose 1, or --cluster slurm")

    def sizes(self) -> tuple[float | None, float | None]:
        """Return the sizes in the cluster file, else those of this machine's devices."""
        return self.file.gpu_mem or devices.gpu_mem(), self.file.memory or host_memory.total() / GIB

    def lacks_gpus(self) -> str:
        """Return a reason when this machine has no GPU that torch can use."""
        if not devices.count_gpus():
            return "this machine has no GPU"
        return "torch is built for CPUs; wellread doctor names the build to install" * devices.torch_is_for_cpus()

    def nvme(self, path: str) -> float | None:
        """Return the free GiB at `path`."""
        deepspeed_file.check_nvme(path)
        return shutil.disk_usage(path).free / GIB

    def check_nvme(self, strategy: str) -> None:
        """Refuse the strategy when libaio is missing."""
        ops.check_libaio(strategy)

    def cores(self, ranks_per_node: int) -> int:
        """Return an equal share of this process's cores."""
        return len(os.sched_getaffinity(0)) // ranks_per_node

    def hosts(self, nodes: int) -> list[str]:
        """Return the name of this machine."""
        return ["localhost"]

    def start(
        self, run: RunDirectory, arguments: list[str], plan: Plan, variables: dict[str, str], code: Path, attempt: int
    ) -> int:
        """Start the ranks as processes of torch's elastic agent."""
        with ladder.watched(run, attempt):
            return elastic.start(arguments, plan.machine.ranks_per_node, variables, code)

    def evaluate(self, evaluation: Evaluation) -> int:
        """Run an evaluation and wait for it; its parts run first."""
        if evaluation.parts:
            code = pool(evaluation.parts, evaluation.parallelism or max(1, devices.count_gpus()))
            if code:
                return code
        return children.run(evaluation.arguments)

    def checks(self, request: Request, nodes: int | None, no_job: bool) -> Iterator[Check]:
        """Yield the checks of this machine."""
        from launch.checks import node

        self._check_nodes(nodes or 1)
        yield from node.report(request).checks


def pool(parts: list[tuple[str, ...]], parallelism: int) -> int:
    """Run the parts as processes, `parallelism` at a time; the first failure ends all and its exit code is returned."""
    cores, gpus = len(os.sched_getaffinity(0)), devices.gpus()
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    for part in range(parallelism if gpus else 0):
        free.put(gpus[part % len(gpus)])
    running: dict[int, subprocess.Popen[str]] = {}
    stopped = threading.Event()

    def work(number: int) -> int:
        if stopped.is_set():
            return 0
        share = {"OMP_NUM_THREADS": str(max(1, cores // parallelism))}
        place = {"CUDA_VISIBLE_DEVICES": free.get()} if gpus else {}
        running[number] = children.start(parts[number], share | place)
        if stopped.is_set():  # stopped in the meantime
            running[number].terminate()
        code = running[number].wait()
        for gpu in place.values():
            free.put(gpu)
        if code and not stopped.is_set():
            stop()
            return children.exit_code(parts[number], code)
        return 0

    def stop() -> None:
        stopped.set()
        for process in list(running.values()):
            process.terminate()

    with ThreadPoolExecutor(parallelism) as workers:
        try:
            codes = list(workers.map(work, range(len(parts))))
        except BaseException:
            stop()
            raise
    return next((code for code in codes if code), 0)
