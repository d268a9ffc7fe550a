"""The backend for a hostfile: ranks on machines that are reached through ssh."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from launch import devices
from launch.backends.attended import Attended
from launch.backends.base import Evaluation
from launch.backends.ssh import connections
from launch.backends.ssh.hosts import hosts
from wellread.errors import UserError
from wellread.planning.machine import Machine
from wellread.planning.plan import Plan
from wellread.run import RunDirectory

if TYPE_CHECKING:
    from launch.checks.check import Check
    from launch.checks.node import Request


class Ssh(Attended):
    """Starts ranks on the first hosts of a hostfile."""

    def probe(self, nodes: int, ranks_per_node: int | Literal["auto"]) -> Machine:
        """Return the slots of the hosts, and their device: as in the cluster file, else that of the first host."""
        listed = hosts(self.file)
        if nodes > len(listed):
            raise UserError(f"--nodes {nodes}: {self.file.hostfile} has {len(listed)}; choose at most {len(listed)}")
        slots = min(host.slots for host in listed[:nodes])
        device = self._device(listed[0].name) if self.file.device == "auto" else self.file.device
        return self._described(nodes, ranks_per_node, device, slots, slots, f"slots in {self.file.hostfile}")

    def _device(self, host: str) -> str:
        """Return the device of `host`, which this machine need not have: ask the host."""
        is_here = connections.address(host) in {*connections.LOOPBACK, socket.gethostname()}
        return "cuda" if (devices.count_gpus() if is_here else connections.count_gpus(self.file, host)) else "cpu"

    def cores(self, ranks_per_node: int) -> int:
        """Return an equal share of the cores, assuming that nodes have as many cores as this machine."""
        return len(os.sched_getaffinity(0)) // ranks_per_node

    def hosts(self, nodes: int) -> list[str]:
        """Return the first names in the hostfile."""
        return [host.name for host in hosts(self.file)[:nodes]]

    def start(
        self, run: RunDirectory, arguments: list[str], plan: Plan, variables: dict[str, str], code: Path, attempt: int
    ) -> int:
        """Start an agent on each host; the agent starts the ranks."""
        names = self.hosts(plan.machine.nodes)
        return connections.start(self.file, names, run.path, arguments, plan.machine.ranks_per_node, variables, code)

    def evaluate(self, evaluation: Evaluation) -> int:
        """Refuse: an evaluation needs only one machine."""
        raise UserError(f"--cluster {self.file.name}: not possible for evaluations; choose local or slurm")

    def checks(self, request: Request, nodes: int | None, no_job: bool) -> Iterator[Check]:
        """Yield the checks of this machine and of each host."""
        from launch.backends.ssh import checks

        return checks.checks(self.file, request, nodes, no_job)
