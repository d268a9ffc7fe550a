"""What launch asks of a kind of cluster, whatever the kind."""

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
    """Folder whose code the ranks run."""
    fall_back: bool = True
    """When memory ran out, go on with the next strategy that fits."""
    wait: bool = False
    """Follow what was handed over to its end."""
    then: tuple[str, ...] = ()
    """What Python runs after a finished run; empty: nothing."""

    @property
    def arguments(self) -> list[str]:
        """What Python runs as each rank; the path is absolute, for the ranks start in the folder of the code."""
        return ["-m", self.program, "train", str(self.run.path.resolve())]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evaluation to start, as what Python runs."""

    run: RunDirectory
    name: str
    arguments: tuple[str, ...]
    parts: list[tuple[str, ...]]
    """What comes first, at the same time; empty where it is one piece."""
    parallelism: int | None = None
    """Parts at a time (default: the backend's choice)."""
    wait: bool = False


Settle = Callable[[], Plan | int | None]
"""Under the run's lock: compile the corpus and begin the run directory. The plan to start, an exit code, or None where
the run is finished."""


@dataclass(frozen=True)
class Backend(ABC):
    """One cluster of a kind: what it has, and how ranks start there."""

    file: ClusterFile

    # what a plan needs

    @abstractmethod
    def probe(self, nodes: int, ranks_per_node: int | Literal["auto"]) -> Machine:
        """So many nodes and ranks of it, as far as a plan needs them.

        Raises
        ------
        UserError
            When it cannot give that many.
        """

    def sizes(self) -> tuple[float | None, float | None]:
        """GiB of each GPU and of each node; None where nobody says."""
        return self.file.gpu_mem, self.file.memory

    def lacks_gpus(self) -> str:
        """Why no rank gets a GPU; empty where one does, or may."""
        return ""

    def nvme(self, path: str) -> float | None:
        """GiB free where `path` lies; None where launch cannot look, which leaves it to the ranks.

        Raises
        ------
        UserError
            When `path` is no place to offload to.
        """
        return None

    def check_nvme(self, strategy: str) -> None:  # noqa: B027 - most leave it to the ranks
        """Refuse a strategy that offloads to NVMe where that is known not to work.

        Raises
        ------
        UserError
            Says what is missing.
        """

    @abstractmethod
    def cores(self, ranks_per_node: int) -> int | None:
        """Cores of each rank; None where nobody says."""

    # what runs there

    def check(self, run: RunDirectory) -> None:  # noqa: B027 - most take any
        """Refuse a run directory that it cannot take.

        Raises
        ------
        UserError
            Says why.
        """

    @abstractmethod
    def train(self, training: Training, settle: Settle, refuse_changed: Callable[[], None]) -> int:
        """Start the ranks, or hand them over; return the exit code, 0 for what goes on without launch.

        Parameters
        ----------
        settle : callable
            To be called once under the run's lock, before anything starts.
        refuse_changed : callable
            To be called where the run waits or runs already: it refuses settings that would make another run of it.
        """

    @abstractmethod
    def evaluate(self, evaluation: Evaluation) -> int:
        """Start an evaluation, or hand it over; return the exit code, 0 for what goes on without launch."""

    @staticmethod
    def jobs_of(run: RunDirectory) -> list[Job]:
        """Jobs that a run was handed over as, oldest first; none where launch stays with the ranks."""
        return []

    def plan_files(self, training: Training, plan: Plan) -> dict[str, str]:
        """What ``launch plan`` shows of it beyond command and environment: name of a file, and its text."""
        return {}

    @abstractmethod
    def checks(self, request: Request, nodes: int | None, no_job: bool) -> Iterator[Check]:
        """What the doctor looks at: this machine, and so many nodes (None: as many as make sense)."""

    # shared by all

    def environment(self, plan: Plan, code: Path | None = None) -> dict[str, str]:
        """Variables of every rank that runs `code` (default: of what is no rank of a run)."""
        variables = environment.variables(self.file, plan.machine.device, self.cores(plan.machine.ranks_per_node))
        return variables | ({provenance.CODE_ROOT: str(code)} if code else {})

    def _described(
        self, nodes: int, ranks_per_node: int | Literal["auto"], device: str, usual: int, most: int, limit: str
    ) -> Machine:
        """The plan's view; at most `most` ranks a node (0: as many as one likes), as `limit` says."""
        ranks = (self.file.ranks_per_node or usual) if ranks_per_node == "auto" else ranks_per_node
        if most and ranks > most:
            raise UserError(f"--ranks_per_node {ranks}: beyond the {most} of a node ({limit}); choose at most that")
        return Machine(cluster=self.file.kind, nodes=nodes, ranks_per_node=ranks, device=device)


def of(file: ClusterFile) -> Backend:
    """The backend of a cluster.

    Raises
    ------
    UserError
        When a key of the file cannot be what it is on such a cluster.
    """
    return _kind(file.kind)(file)


def _kind(name: str) -> type[Backend]:
    module, _, attribute = BACKENDS[name].partition(":")
    backend: type[Backend] = getattr(import_module(module), attribute)
    return backend


def jobs_of(run: RunDirectory) -> list[Job]:
    """Jobs of a run on clusters of all kinds, of each oldest first."""
    return [job for name in BACKENDS for job in _kind(name).jobs_of(run)]


def summary(plan: Plan) -> str:
    """One line about a plan."""
    ranks = f"{plan.ranks} {plan.machine.device} rank{'s' * (plan.ranks > 1)}"
    return f"{plan.steps} steps of {plan.batch_size} samples on {ranks}, {plan.strategy}, {plan.dtype}"
