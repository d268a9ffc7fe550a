"""Submitted jobs of a run, which continue without launch, and their states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
ACTIVE = WAITING | {
    "CONFIGURING",
    "RUNNING",
    "COMPLETING",
    "SUSPENDED",
    "STOPPED",
    "SIGNALING",
    "STAGE_OUT",
    "RESIZING",
}


class QueueError(RuntimeError):
    """The queue gave no answer, or rejected a command."""


class NoQueueError(QueueError):
    """The commands of the queue are not installed on this machine."""


@dataclass(frozen=True, kw_only=True)
class JobState:
    """The state of one job in its queue."""

    state: str
    """SLURM's name, e.g. PENDING, RUNNING, COMPLETED, FAILED; UNKNOWN when the queue does not know the job any more."""
    exit_code: int = 0
    """Exit code of the batch script; 128 + S when signal S ended it."""
    reason: str = ""
    nodes: str = ""
    restarts: int = 0
    seconds: int = 0
    """Since its start."""

    @property
    def active(self) -> bool:
        """Whether it is queued or running."""
        return self.state in ACTIVE

    @property
    def result(self) -> int:
        """Exit code of the ended job as a shell reports it; 0 only when the job was completed."""
        special = {"COMPLETED": 0, "CANCELLED": 143, "TIMEOUT": 124, "DEADLINE": 124, "OUT_OF_MEMORY": 137}
        if self.state == "FAILED" or self.state not in special:
            return self.exit_code or 1
        return special[self.state]


@dataclass(frozen=True)
class Job(ABC):
    """One job of a run; its methods query or command the queue.

    Raises
    ------
    QueueError
        In each method: when the queue gives no answer or rejects the command.
    """

    note: dict[str, Any]
    """Entry written when the job was submitted: `id`, `kind`, `submitted`, `tasks`, `folder`."""

    @property
    def id(self) -> str:
        """The job id."""
        return str(self.note["id"])

    @property
    def kind(self) -> str:
        """finetune, pretrain or eval."""
        return str(self.note["kind"])

    @abstractmethod
    def state(self) -> JobState:
        """Return its state in the queue."""

    @abstractmethod
    def signal(self, name: str) -> None:
        """Send a signal, e.g. TERM, to its ranks."""

    @abstractmethod
    def cancel(self) -> None:
        """End it, whether it is queued or running."""
