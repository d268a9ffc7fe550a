"""Evaluations started by launch, on this machine or as SLURM jobs; optionally with one task per checkpoint."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass

from launch.backends import base as backends
from launch.backends.base import Evaluation
from launch.cluster import ClusterFile
from wellread.errors import BAD_INPUT, UserError
from wellread.run import RunDirectory

AFTER_A_RUN = "membership"
"""The evaluation that follows a run (``--then eval``)."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """An evaluation to start."""

    command: str
    run: RunDirectory
    flags: tuple[str, ...] = ()
    """More flags of ``wellread COMMAND RUN``."""
    cluster: ClusterFile
    fan_out: bool = False
    parallelism: int | None = None
    wait: bool = False

    def arguments(self, *more: str) -> tuple[str, ...]:
        """Return the arguments of the Python interpreter."""
        return ("-m", "eval", self.command, str(self.run.path.resolve()), *self.flags, *more)

    def parts(self) -> list[tuple[str, ...]]:
        """Return Python's arguments for each checkpoint, as listed by ``eval parts``.

        Raises
        ------
        UserError
            When this evaluation cannot be split by checkpoint.
        """
        command = [sys.executable, "-m", "eval", "parts", *self.arguments()[2:]]
        result = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
        if result.returncode == BAD_INPUT:
            raise UserError(result.stderr.strip().removeprefix("error: "))
        if result.returncode:
            raise RuntimeError(f"{shlex.join(command)} ended with exit code {result.returncode}:\n{result.stderr}")
        return [("-m", "eval", *part) for part in json.loads(result.stdout)]


def run(request: Request) -> int:
    """Start an evaluation; return its exit code, or 0 after it was submitted.

    Raises
    ------
    UserError
        When it cannot be split by checkpoint, there is nothing to evaluate, or SLURM rejects the job.
    """
    parts = request.parts() if request.fan_out else []
    evaluation = Evaluation(
        run=request.run,
        name=request.command,
        arguments=request.arguments(),
        parts=parts,
        parallelism=request.parallelism,
        wait=request.wait,
    )
    return backends.of(request.cluster).evaluate(evaluation)
