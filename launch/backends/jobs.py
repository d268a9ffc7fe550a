"""Jobs that a run was handed over as: they go on without launch, and whoever asks for their state finds them here."""

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


@dataclass(frozen=True, kw_only=True)
class JobState:
    """One job, as its queue sees it."""

    state: str
    """SLURM's word, e.g. PENDING, RUNNING, COMPLETED, FAILED; UNKNOWN when the queue has forgotten the job."""
    exit_code: int = 0
    """The batch script's; 128 + S when signal S ended it."""
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
        """Exit code of the ended job as a shell would report it, never 0 unless it was completed."""
        special = {"COMPLETED": 0, "CANCELLED": 143, "TIMEOUT": 124, "DEADLINE": 124, "OUT_OF_MEMORY": 137}
        if self.state == "FAILED" or self.state not in special:
            return self.exit_code or 1
        return special[self.state]


@dataclass(frozen=True)
class Job(ABC):
    """One job of a run; its queue is asked, and may not answer.

    Raises
    ------
    RuntimeError
        Each method: when the queue gives no answer, or refuses.
    """

    note: dict[str, Any]
    """What was noted when it was handed over: `id`, `kind`, `submitted`, `tasks`, `folder`."""

    @property
    def id(self) -> str:
        """The queue's number."""
        return str(self.note["id"])

    @property
    def kind(self) -> str:
        """What it does: finetune, pretrain or eval."""
        return str(self.note["kind"])

    @abstractmethod
    def state(self) -> JobState:
        """What the queue knows of it."""

    @abstractmethod
    def signal(self, name: str) -> None:
        """Send a signal, e.g. TERM, to its ranks."""

    @abstractmethod
    def cancel(self) -> None:
        """End it, whether it waits or runs."""
