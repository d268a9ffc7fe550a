"""Out-of-memory errors: find the evidence of an attempt, and plan the fallback, the next strategy."""

from __future__ import annotations

import signal
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from launch import attempts
from wellread.config import from_dict
from wellread.config.flat import shape_of
from wellread.errors import UserError
from wellread.files import read_json, with_checksum, write_json
from wellread.planning import host_memory
from wellread.planning.fallback import Failure, Shortage
from wellread.planning.host_memory import Kills
from wellread.planning.plan import Plan
from wellread.planning.planner import replan
from wellread.recipes.registry import model_of_run
from wellread.run import RunDirectory
from wellread.streams import print_error
from wellread.units import GIB

OUT_OF_MEMORY = "OUT_OF_MEMORY"
"""SLURM's state of a job that exceeded its memory."""


@contextmanager
def watched(run: RunDirectory, attempt: int, node: int = 0) -> Iterator[None]:
    """Record what the OOM killer kills on this node while ranks run here."""
    before = Kills.so_far()
    try:
        yield
    finally:
        if killed := Kills.so_far().since(before):
            shortage = Shortage(place="host", evidence=f"{socket.gethostname()}: {killed}", limit=host_memory.total())
            write_json(run.log / f"attempt-{attempt:03d}-node-{node}.memory.json", asdict(shortage))


def note(run: RunDirectory, plan: Plan, attempt: int, lost: Collection[int] = ()) -> Failure | None:
    """Print, and write into the manifest, that a failed attempt ran out of memory; None without evidence for that.

    Parameters
    ----------
    lost : collection of int
        Ranks that ended together with the process that watched them, so that none of them could write an error file.
    """
    shortage = _shortage(run, plan, attempt, lost)
    return _note(run, plan, attempt, shortage) if shortage else None


def note_job(run: RunDirectory, job_id: str, state: str) -> Failure | None:
    """Do the same based on SLURM's state, for a job that ended before it could write any evidence."""
    number = len(run.manifest()["attempts"])
    last = run.manifest()["attempts"][-1] if number else {}
    if state != OUT_OF_MEMORY or last.get("job") != job_id or "out_of_memory" in last:
        return None
    plan = Plan.open(run.plan_file)
    limit = None if plan.machine.host_mem is None else int(plan.machine.host_mem * GIB)
    shortage = Shortage(place="host", evidence=f"job {job_id}: SLURM says {OUT_OF_MEMORY}", limit=limit)
    return _note(run, plan, number, shortage)


def failures(run: RunDirectory) -> tuple[Failure, ...]:
    """Return the attempts of a run that ran out of memory, oldest first."""
    if not run.manifest_file.exists():
        return ()
    noted = (attempt.get("out_of_memory") for attempt in run.manifest()["attempts"])
    return tuple(Failure.of(values) for values in noted if values)


def next_plan(run: RunDirectory, plan: Plan) -> Plan | None:
    """Write the plan of the next strategy that fits; print an error and return None when there is none."""
    config = run.config()
    try:
        lower = replan(config, model_of_run(run), plan, failures(run))
    except UserError as error:
        print_error(str(error))
        return None
    write_json(run.plan_file, with_checksum(lower.as_dict()))
    again = " with activation checkpointing" * lower.activation_checkpointing
    print(f"continuing with {lower.strategy}{again}, micro-batch {lower.micro_batch_size}", flush=True)
    return lower


def _note(run: RunDirectory, plan: Plan, attempt: int, shortage: Shortage) -> Failure | None:
    if shortage.place == "gpu" and plan.machine.device != "cuda":
        print_error(f"GPU memory ran out ({shortage.evidence}), but this run is planned for CPUs; see wellread doctor")
        return None
    if plan.needs is None:
        print_error(f"out of memory ({shortage.evidence}); no estimate for {plan.model}, so choose another --strategy")
        return None
    failure = Failure(
        attempt=attempt,
        strategy=plan.strategy,
        activation_checkpointing=plan.activation_checkpointing,
        shortage=shortage,
        needed=plan.needs[f"{shortage.place}_bytes"],
        believed=plan.machine.gpu_mem if shortage.place == "gpu" else plan.machine.host_mem,
    )
    attempts.add(run, attempt, {"out_of_memory": asdict(failure)})
    print_error(str(failure))
    return failure


def _shortage(run: RunDirectory, plan: Plan, attempt: int, lost: Collection[int]) -> Shortage | None:
    """Return evidence that an attempt ran out of memory: a rank's out-of-memory error, or kills by the OOM killer.

    The kernel's count of kills is not enough, since it includes other processes: a rank of that node must also have
    been killed. A rank without an error file was not, unless it is lost: it saved on request, or was ended because
    another rank failed.
    """
    errors = attempts.errors(run, attempt)
    for error in errors:
        if error.get("shortage"):
            return _read(error["shortage"])
    killed = {*lost, *(error["rank"] for error in errors if error.get("signal") == signal.SIGKILL)}
    for node in sorted({rank // plan.machine.ranks_per_node for rank in killed}):
        path = run.log / f"attempt-{attempt:03d}-node-{node}.memory.json"
        if path.exists():
            return _read(read_json(path, shape_of(Shortage)))
    return None


def _read(values: dict[str, object]) -> Shortage:
    shortage: Shortage = from_dict(Shortage, values)
    return shortage
