"""The fallback (`--ladder`): after an out-of-memory error, a run continues with the next strategy that fits.

A run changes its strategy only on evidence: an error that names memory, the kernel's OOM kill counter, or SLURM's job
state. Order, batches and record do not depend on the strategy, so a run reads and learns the same under each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from wellread.config import from_dict
from wellread.planning.machine import Machine
from wellread.units import GIB

SAME_SIZE = 1.02
"""A failure does not count on a machine that has more than this many times the memory."""
WORDS = {"gpu": "GPU memory", "host": "host memory"}


@dataclass(frozen=True, kw_only=True)
class Shortage:
    """Evidence that memory ran out."""

    place: Literal["gpu", "host"]
    evidence: str
    """The evidence in words."""
    limit: int | None = None
    """Memory of the GPU or the host, in bytes; None when unknown."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An attempt that ran out of memory."""

    attempt: int
    strategy: str
    activation_checkpointing: bool
    shortage: Shortage
    needed: int
    """Predicted bytes of the memory that ran out."""
    believed: float | None
    """Limit that the plan assumed, in GiB; None when it had no limit."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> Failure:
        """Build a failure from its values in a manifest or a plan."""
        failure: Failure = from_dict(cls, values)
        return failure

    @property
    def rung(self) -> tuple[str, bool]:
        """What is not tried again: the strategy, and whether it used activation checkpointing."""
        return self.strategy, self.activation_checkpointing

    def __str__(self) -> str:
        checkpointing = " with activation checkpointing" * self.activation_checkpointing
        return (
            f"{WORDS[self.shortage.place]} ran out under {self.strategy}{checkpointing} in attempt {self.attempt} "
            f"({self.shortage.evidence})"
        )


def that_count(failures: Iterable[Failure], machine: Machine) -> tuple[Failure, ...]:
    """Failures that count on this machine: those that happened with at least as much memory as it has."""
    relevant = []
    for failure in failures:
        limit = machine.limit(failure.shortage.place)
        if failure.believed is None or limit is None or limit <= SAME_SIZE * failure.believed * GIB:
            relevant.append(failure)
    return tuple(relevant)


def narrowed(machine: Machine, failures: Sequence[Failure]) -> Machine:
    """The machine with limits lowered after failures: to the memory that ran out, and to the bytes predicted for it."""
    for failure in failures:
        place = failure.shortage.place
        sizes = [size for size in (machine.limit(place), failure.shortage.limit, failure.needed) if size]
        least = min(sizes) / GIB
        machine = replace(machine, gpu_mem=least) if place == "gpu" else replace(machine, host_mem=least)
    return machine
