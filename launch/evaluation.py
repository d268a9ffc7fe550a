"""Evaluations started from launch: here or as SLURM jobs, and one task per checkpoint where they can be fanned out."""

from __future__ import annotations

from dataclasses import dataclass

from launch.backends import base as backends
from launch.backends.base import Evaluation
from launch.cluster import ClusterFile
from wellread.checkpoint import list_checkpoints
from wellread.errors import UserError
from wellread.run import RunDirectory

FANS_OUT = ("membership",)
"""Evaluations that can score one checkpoint at a time (``--steps N --scores_only``) and compare afterwards."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """An evaluation to start."""

    command: str
    run: RunDirectory
    rest: tuple[str, ...] = ()
    """Further flags of ``python -m eval COMMAND RUN``."""
    cluster: ClusterFile
    fan_out: bool = False
    parallelism: int | None = None
    wait: bool = False

    def arguments(self, *more: str) -> tuple[str, ...]:
        """What Python runs."""
        return ("-m", "eval", self.command, str(self.run.path.resolve()), *self.rest, *more)

    def parts(self) -> list[tuple[str, ...]]:
        """What Python runs for each checkpoint."""
        steps = [checkpoint.step for checkpoint in list_checkpoints(self.run.checkpoints)]
        return [self.arguments("--steps", str(step), "--scores_only") for step in steps]


def run(request: Request) -> int:
    """Start an evaluation; return its exit code, or 0 once it is handed over.

    Raises
    ------
    UserError
        When it cannot be fanned out, there is nothing to evaluate, or SLURM refuses it.
    """
    if request.fan_out and request.command not in FANS_OUT:
        raise UserError(f"--fan_out: eval {request.command} is one piece; it works with {', '.join(FANS_OUT)}")
    if request.fan_out and any(word.partition("=")[0] == "--steps" for word in request.rest):
        raise UserError("--fan_out: takes every checkpoint; leave it out to evaluate those of --steps")
    parts = request.parts() if request.fan_out else []
    if request.fan_out and not parts:
        raise UserError(f"{request.run.path}: no checkpoint yet; let the run save one")
    asked = Evaluation(
        run=request.run,
        name=request.command,
        whole=request.arguments(),
        parts=parts,
        parallelism=request.parallelism,
        wait=request.wait,
    )
    return backends.of(request.cluster).evaluate(asked)
