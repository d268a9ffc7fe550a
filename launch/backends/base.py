"""The interface of all backends, one per kind of cluster."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from launch import environment
from launch.backends.jobs import Job
from launch.cluster import BACKENDS, ClusterFile
from wellread import provenance
from wellread.errors import UserError
from wellread.planning.machine import Machine
from wellread.planning.plan import Plan
from wellread.run import RunDirectory

if TYPE_CHECKING:
    from launch.checks.check import Check
    from launch.checks.node import Request


@dataclass(frozen=True, kw_only=True)
class Training:
    """A run to train."""

    run: RunDirectory
    program: str
    """finetune or pretrain."""
    code: Path
    """Folder with the code that the ranks run."""
    fall_back: bool = True
    """After an out-of-memory error, continue with the next strategy that fits."""
    wait: bool = False
    """Follow submitted jobs until they end."""
    then: tuple[str, ...] = ()
    """Arguments of Python for a command after the finished run; empty: no command."""

    @property
    def arguments(self) -> list[str]:
        """Arguments of Python for each rank; the path is absolute, since ranks start in the folder of the code."""
        return ["-m", self.program, "train", str(self.run.path.resolve())]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evaluation to start."""

    run: RunDirectory
    name: str
    arguments: tuple[str, ...]
    """Arguments of Python for the evaluation, or for the last step after all parts."""
    parts: list[tuple[str, ...]]
    """Arguments of Python for each part; parts run first, in parallel. Empty for an evaluation without parts."""
    parallelism: int | None = None
    """Number of parts that run at the same time (default: the backend's choice)."""
    wait: bool = False


Settle = Callable[[], Plan | int | None]
"""Compiles the corpus and creates the run directory, under the run's lock. Returns the plan to start, an exit code, or
None when the run is finished."""


@dataclass(frozen=True)
class Backend(ABC):
    """A cluster: its resources, and how ranks start there."""

    file: ClusterFile

    # what a plan needs

    @abstractmethod
    def probe(self, nodes: int, ranks_per_node: int | Literal["auto"]) -> Machine:
        """Return the requested nodes and ranks as the machine of a plan.

        Raises
        ------
        UserError
            When the cluster does not have that many.
        """

    def sizes(self) -> tuple[float | None, float | None]:
        """Return GiB of each GPU and of each node; None where unknown."""
        return self.file.gpu_mem, self.file.memory

    def lacks_gpus(self) -> str:
        """Return why no rank gets a GPU; empty when ranks get or may get one."""
        return ""

    def nvme(self, path: str) -> float | None:
        """Return the free GiB at `path`; None when launch cannot measure it and the ranks must.

        Raises
        ------
        UserError
            When `path` cannot be used for offloading.
        """
        return None

    def check_nvme(self, strategy: str) -> None:  # noqa: B027 - most leave it to the ranks
        """Refuse a strategy that offloads to NVMe when this is known not to work.

        Raises
        ------
        UserError
            Says what is missing.
        """

    @abstractmethod
    def cores(self, ranks_per_node: int) -> int | None:
        """Return the number of cores of each rank; None where unknown."""

    # starting and following

    def check(self, run: RunDirectory) -> None:  # noqa: B027 - most accept any
        """Refuse a run directory that the backend cannot use.

        Raises
        ------
        UserError
            Says why.
        """

    @abstractmethod
    def train(self, training: Training, settle: Settle, refuse_changed: Callable[[], None]) -> int:
        """Start the ranks or submit a job; return the exit code, 0 for a job that continues without launch.

        Parameters
        ----------
        settle : callable
            To be called once under the run's lock, before anything starts.
        refuse_changed : callable
            To be called when the run is already queued or running: it refuses settings that change its identity.
        """

    @abstractmethod
    def evaluate(self, evaluation: Evaluation) -> int:
        """Start an evaluation or submit it; return the exit code, 0 for a job that continues without launch."""

    @staticmethod
    def jobs_of(run: RunDirectory) -> list[Job]:
        """Return the submitted jobs of a run, oldest first; none for backends that do not submit."""
        return []

    def plan_files(self, training: Training, plan: Plan) -> dict[str, str]:
        """Return what ``wellread plan`` shows in addition to command and environment: name of a file -> its text."""
        return {}

    @abstractmethod
    def checks(self, request: Request, nodes: int | None, no_job: bool) -> Iterator[Check]:
        """Yield the doctor's checks of this machine and of `nodes` nodes (None: the backend's choice)."""

    # shared by all

    def environment(self, plan: Plan, code: Path | None = None) -> dict[str, str]:
        """Return the environment variables of a rank that runs `code` (default: of another process)."""
        variables = environment.variables(self.file, plan.machine.device, self.cores(plan.machine.ranks_per_node))
        return variables | ({provenance.CODE_ROOT: str(code)} if code else {})

    def _described(
        self, nodes: int, ranks_per_node: int | Literal["auto"], device: str, usual: int, most: int, limit: str
    ) -> Machine:
        """Return the machine of a plan; refuse more than `most` ranks per node (0: no limit) because of `limit`."""
        ranks = (self.file.ranks_per_node or usual) if ranks_per_node == "auto" else ranks_per_node
        if most and ranks > most:
            raise UserError(f"--ranks_per_node {ranks}: a node has {most} ({limit}); choose at most {most}")
        return Machine(cluster=self.file.kind, nodes=nodes, ranks_per_node=ranks, device=device)


def of(file: ClusterFile) -> Backend:
    """Return the backend of a cluster.

    Raises
    ------
    UserError
        When a value in the file is not possible with this backend.
    """
    return _kind(file.kind)(file)


def _kind(name: str) -> type[Backend]:
    module, _, attribute = BACKENDS[name].partition(":")
    backend: type[Backend] = getattr(import_module(module), attribute)
    return backend


def jobs_of(run: RunDirectory) -> list[Job]:
    """Return the submitted jobs of a run from all backends, for each backend oldest first."""
    return [job for name in BACKENDS for job in _kind(name).jobs_of(run)]


def summary(plan: Plan) -> str:
    """Describe a plan in one line."""
    ranks = f"{plan.ranks} {plan.machine.device} rank{'s' * (plan.ranks > 1)}"
    return f"{plan.steps} steps of {plan.batch_size} samples on {ranks}, {plan.strategy}, {plan.dtype}"
