"""The ladder: when memory runs out, a run goes on with the next strategy that fits what is known of the limits now.

Only evidence moves a run: an error that names memory, the kernel's count of its kills, SLURM's state. Order, batch and
record do not depend on the strategy, so neither does what a run reads or learns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from wellread.config import from_dict
from wellread.planning.machine import Machine
from wellread.units import GIB

SAME_SIZE = 1.02
"""How much larger a machine's memory must be for a failure on the smaller one to say nothing of it."""
WORDS = {"gpu": "GPU memory", "host": "host memory"}


@dataclass(frozen=True, kw_only=True)
class Shortage:
    """Evidence that memory ran out."""

    place: Literal["gpu", "host"]
    evidence: str
    """What shows it, in words."""
    limit: int | None = None
    """Bytes that there were: of a GPU, or of the host."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An attempt whose memory ran out."""

    attempt: int
    strategy: str
    activation_checkpointing: bool
    shortage: Shortage
    needed: int
    """Bytes that were predicted, where they ran out."""
    believed: float | None
    """GiB that the plan took to be there; None: it knew no limit."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> Failure:
        """The failure that a manifest or a plan holds."""
        failure: Failure = from_dict(cls, values)
        return failure

    @property
    def rung(self) -> tuple[str, bool]:
        """What is not tried again: the strategy, with or without activation checkpointing."""
        return self.strategy, self.activation_checkpointing

    def __str__(self) -> str:
        again = " with activation checkpointing" * self.activation_checkpointing
        return (
            f"{WORDS[self.shortage.place]} ran out under {self.strategy}{again} in attempt {self.attempt} "
            f"({self.shortage.evidence})"
        )


def that_count(failures: Iterable[Failure], machine: Machine) -> tuple[Failure, ...]:
    """Failures that say something of this machine: none that happened with less memory than it has."""
    found = []
    for failure in failures:
        there = machine.limit(failure.shortage.place)
        if failure.believed is None or there is None or there <= SAME_SIZE * failure.believed * GIB:
            found.append(failure)
    return tuple(found)


def narrowed(machine: Machine, failures: Sequence[Failure]) -> Machine:
    """The machine as failures have shown it: with no more than ran out, and less than what was predicted there."""
    for failure in failures:
        place = failure.shortage.place
        known = [size for size in (machine.limit(place), failure.shortage.limit, failure.needed) if size]
        least = min(known) / GIB
        machine = replace(machine, gpu_mem=least) if place == "gpu" else replace(machine, host_mem=least)
    return machine
