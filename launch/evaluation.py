"""Evaluations started from launch: here or as SLURM jobs, and one task per checkpoint where they can be fanned out."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from launch import cluster as clusters
from launch import slurm
from launch.cluster import ClusterFile
from launch.slurm_task import CommandTask
from wellread import provenance
from wellread.checkpoint import list_checkpoints
from wellread.errors import UserError
from wellread.planning.plan import Plan
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
    if request.fan_out and not request.parts():
        raise UserError(f"{request.run.path}: no checkpoint yet; let the run save one")
    if request.cluster.kind == "slurm":
        return _hand_over(request)
    if request.cluster.kind != "local":
        raise UserError(f"--cluster {request.cluster.name}: evaluations run on local or slurm; choose one of these")
    if request.fan_out:
        code = _pool(request.parts(), request.parallelism or max(1, clusters.count_gpus()))
        if code:
            return code
    return subprocess.run([sys.executable, *request.arguments()], check=False).returncode


def _pool(parts: list[tuple[str, ...]], parallelism: int) -> int:
    """Run the parts as processes, `parallelism` at a time; the first failure ends the others and is returned."""
    cores, gpus = len(os.sched_getaffinity(0)), clusters.count_gpus()
    running: dict[int, subprocess.Popen[bytes]] = {}
    stopped = threading.Event()

    def work(number: int) -> int:
        if stopped.is_set():
            return 0
        share = {"OMP_NUM_THREADS": str(max(1, cores // parallelism))}
        if gpus:
            share["CUDA_VISIBLE_DEVICES"] = str(number % gpus)
        running[number] = subprocess.Popen([sys.executable, *parts[number]], env=os.environ | share)
        if stopped.is_set():  # while it was started
            running[number].terminate()
        code = running[number].wait()
        if code and not stopped.is_set():
            stop()
            return code if code > 0 else 128 - code
        return 0

    def stop() -> None:
        stopped.set()
        for process in list(running.values()):
            process.terminate()

    with ThreadPoolExecutor(parallelism) as pool:
        try:
            codes = list(pool.map(work, range(len(parts))))
        except BaseException:
            stop()
            raise
    return next((code for code in codes if code), 0)


def _hand_over(request: Request) -> int:
    run = request.run
    slurm.check(run)
    if going := slurm.active(run, "eval"):
        raise UserError(f"{run.path}: job {going[-1][0]['id']} evaluates it already; wait for it, or make cancel")
    first = None
    if request.fan_out:
        parts = request.parts()
        wanted = _wanted(request, f"{run.name} eval parts", None)
        if len(parts) > 1:
            wanted["array_parallelism"] = request.parallelism or len(parts)
        first = slurm.submit(request.cluster, run, [_task(request, part) for part in parts], wanted, "eval")
        print(f"submitted {len(parts)} evaluations as job {first}", flush=True)
    wanted = _wanted(request, f"{run.name} eval", first)
    job_id = slurm.submit(request.cluster, run, [_task(request, request.arguments())], wanted, "eval")
    print(f"submitted eval {request.command} as job {job_id}" + f", after job {first}" * bool(first), flush=True)
    if not request.wait:
        return 0
    code = slurm.follow(run, first, show_log=False) if first else 0
    return code or slurm.follow(run, job_id, show_log=False)


def is_done(run: RunDirectory) -> bool:
    """Whether the report is there, and newer than the last checkpoint."""
    report, checkpoints = run.report / "index.html", list_checkpoints(run.checkpoints)
    return report.exists() and all(report.stat().st_mtime > c.path.stat().st_mtime for c in checkpoints)


def after_run(run: RunDirectory, cluster: ClusterFile, after: str | None, code: str) -> str:
    """Hand over the membership evaluation of a run, to start when job `after` has ended well; return its id."""
    request = Request(command="membership", run=run, cluster=cluster)
    wanted = _wanted(request, f"{run.name} eval", after)
    wanted["additional_parameters"]["chdir"] = code
    return slurm.submit(cluster, run, [_task(request, request.arguments())], wanted, "eval")


def _task(request: Request, arguments: tuple[str, ...]) -> CommandTask:
    plan = Plan.from_json(request.run.plan_file.read_text())
    return CommandTask(arguments, clusters.environment(replace(plan, ranks_per_node=1), request.cluster))


def _wanted(request: Request, name: str, after: str | None) -> dict[str, Any]:
    return slurm.parameters(request.cluster, name=name, nodes=1, ranks_per_node=1, code=provenance.ROOT, after=after)
