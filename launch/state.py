"""The state of a run, from its directory and SLURM's queue.

A run has one of these states:

=========  =============================================================================================================
finished   the checkpoint of its last step exists
running    a launch holds its lock, or its SLURM job runs
pending    its SLURM job waits in the queue
requeued   its SLURM job waits in the queue again, after it has run
stopped    its newest attempt was ended on request (SIGTERM, SIGINT, SIGHUP, SIGUSR2); the same command resumes it
failed     its newest attempt, or its job before the ranks started, ended with another exit code
killed     its newest attempt has no end in the manifest, no process holds the lock, and no SLURM job of it is active
prepared   it has no attempt yet
unknown    SLURM gives no answer, or the run's files cannot be read
=========  =============================================================================================================
"""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import isfinite
from pathlib import Path
from typing import Any

from launch.backends import base as backends
from launch.backends.jobs import WAITING, Job, JobState, NoQueueError
from wellread.checkpoint import MANIFEST
from wellread.errors import UserError
from wellread.run import Holder, RunDirectory
from wellread.shapes import mismatch
from wellread.whole import read_whole

REQUEST_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
REQUESTS = {128 + number: number.name for number in REQUEST_SIGNALS}
"""Exit code of an attempt that ended on request -> name of the signal."""
NUMBER = (float, None)
PROGRESS: dict[str, Any] = {
    "attempt": int, "step": int, "steps": int, "time": float, "seconds_per_step": float, "tokens": NUMBER,
    "loss": NUMBER, "tokens_per_second": NUMBER,
}  # fmt: skip
"""Shape of progress.json; a file with another one, or damaged, is ignored."""
LONGEST_STEP = 1e6
"""Seconds; more are not a report of a run."""
EVALUATION = "eval"
"""Kind of jobs that evaluate; all other jobs train."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """The current state of one run."""

    run: str
    state: str
    reason: str
    """Short reason for the state; may be empty."""
    step: int | None = None
    """Last step that the newest attempt reported, else the step of the last checkpoint."""
    steps: int | None = None
    tokens: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    """Mean over the last 20 steps of the newest attempt."""
    seconds_per_step: float | None = None
    """Mean over the same steps."""
    seconds_left: float | None = None
    last_checkpoint: int | None = None
    attempts: int = 0
    where: str = ""
    """Process id and host, or SLURM job and nodes."""

    @property
    def in_words(self) -> str:
        """The state, with its reason if there is one."""
        return self.state + f" ({self.reason})" * bool(self.reason)


@dataclass(frozen=True)
class JobView:
    """A job of a run and its current state; `now` is None when the queue gave no answer."""

    job: Job
    now: JobState | None

    @property
    def id(self) -> str:
        """The job id."""
        return self.job.id


def open_run(path: str | Path) -> RunDirectory:
    """Open a run directory, also one that a launch is preparing.

    Raises
    ------
    UserError
        When `path` is neither.
    """
    preparing = RunDirectory(Path(path))
    return preparing if preparing.holder() else RunDirectory.open(path)


def refuse_queued(run: RunDirectory) -> None:
    """Refuse to launch a run while a training job of it is queued or running: the job uses the run's plan and code.

    Raises
    ------
    UserError
        Names the job.
    QueueError
        When the queue gives no answer.
    """
    for job in backends.jobs_of(run):
        if job.kind == EVALUATION:
            continue
        try:
            state = job.state()
        except NoQueueError as error:  # a copy of the run on another machine, or a machine outside the cluster
            print(f"warning: {error}; if it is still queued there, cancel it first", file=sys.stderr, flush=True)
            return
        if state.active:
            raise UserError(
                f"{run.path}: job {job.id} is {state.state.lower()}; run `wellread cancel {run.path}` first, "
                "or choose another --out"
            )


class Scheduler:
    """Queries SLURM about jobs; after a query without an answer it makes no more queries."""

    def __init__(self) -> None:
        self.refusal = ""

    def jobs(self, jobs: Iterable[Job]) -> list[JobView]:
        """Return these jobs with their states in SLURM."""
        return [JobView(job, self._state(job)) for job in jobs]

    def _state(self, job: Job) -> JobState | None:
        if self.refusal:
            return None
        try:
            return job.state()
        except RuntimeError as error:
            self.refusal = str(error)
            return None


@dataclass(frozen=True)
class Facts:
    """The facts that determine the state of a run."""

    steps: int | None
    last_checkpoint: int | None
    attempts: list[dict[str, Any]]
    holder: Holder | None
    job: JobView | None
    """The newest training job."""

    @property
    def under_way(self) -> bool:
        """Whether the newest attempt is running now."""
        if not self.attempts or "ended" in self.attempts[-1]:
            return False
        newest, job = self.attempts[-1], self.job
        if job is None or job.now is None or not job.now.active:
            return self.holder is not None
        return (newest.get("job"), newest.get("restart")) == (job.id, job.now.restarts)

    @property
    def finished(self) -> bool:
        """Whether the checkpoint of the last step exists; damage is not checked, since this takes long."""
        return self.last_checkpoint is not None and self.last_checkpoint == self.steps

    @property
    def active(self) -> bool:
        """Whether a part of the run is queued or running, or could be because SLURM gives no answer."""
        if self.holder or self.job is None:
            return self.holder is not None
        return self.job.now is None or self.job.now.active


def facts(run: RunDirectory, scheduler: Scheduler) -> Facts:
    """Read the run's files, test its lock, and query SLURM about its newest job unless the run is finished.

    The manifest is read after SLURM has answered, and the lock is tested before and after: otherwise an attempt that
    starts or ends in between would look killed.
    """
    holder = run.holder()
    training = [job for job in backends.jobs_of(run) if job.kind != EVALUATION]
    jobs = scheduler.jobs(training[-1:]) if training and not _is_finished(run) else []
    manifest = _manifest(run)
    return Facts(
        steps=manifest["identity"].get("steps"),
        last_checkpoint=last_checkpoint(run),
        attempts=manifest["attempts"],
        holder=holder or run.holder(),
        job=jobs[0] if jobs else None,
    )


def _manifest(run: RunDirectory) -> dict[str, Any]:
    return run.manifest() if run.manifest_file.exists() else {"attempts": [], "identity": {}}


def _is_finished(run: RunDirectory) -> bool:
    last = last_checkpoint(run)
    return last is not None and last == _manifest(run)["identity"].get("steps")


def attempts_of(run: RunDirectory) -> list[dict[str, Any]]:
    """Return the attempts in the manifest, oldest first; none if the manifest is missing or damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        listed: list[dict[str, Any]] = run.manifest()["attempts"]
        return listed
    return []


def last_checkpoint(run: RunDirectory) -> int | None:
    """Return the step of the newest complete checkpoint; None without any."""
    names = [path.parent.name for path in run.checkpoints.glob(f"step-*/{MANIFEST}")]
    return max((int(name[5:]) for name in names if re.fullmatch(r"step-\d+", name)), default=None)


def state_of(current: Facts) -> tuple[str, str]:
    """Return the state that follows from the facts, and its reason."""
    if current.finished:
        return "finished", ""
    job = current.job
    if job and job.now and job.now.active:
        return _queued(job.now)
    if current.holder:
        return "running", "" if current.under_way else "preparing"
    if job and job.now is None:
        return "unknown", "no answer from SLURM"
    return _ended(current)


def _queued(now: JobState) -> tuple[str, str]:
    if now.state in WAITING:
        return "requeued" if now.restarts else "pending", now.reason
    return "running", "" if now.state == "RUNNING" else now.state.lower()


def _ended(current: Facts) -> tuple[str, str]:
    """Return the state of a run that is neither queued nor running, and its reason."""
    job = current.job
    if job and job.now and not has_begun(job.job, current.attempts):
        words = {
            "CANCELLED": ("stopped", "was canceled"),
            "UNKNOWN": ("unknown", "is no longer known to SLURM and has no attempt"),
        }
        state, what = words.get(job.now.state, ("failed", f"{job.now.state.lower()} before its ranks started"))
        return state, f"job {job.id} {what}"
    if not current.attempts:
        return "prepared", ""
    newest = current.attempts[-1]
    if "ended" not in newest:
        of_job = job and job.now and newest.get("job") == job.id and job.now.state not in ("COMPLETED", "UNKNOWN")
        return "killed", f"job {job.id} {job.now.state.lower()}" if job and job.now and of_job else ""
    code = newest["exit_code"]
    if code in REQUESTS:
        return "stopped", f"by {REQUESTS[code]}"
    return ("failed", exit_in_words(code)) if code else ("stopped", "the last checkpoint is missing")


def exit_in_words(code: int) -> str:
    """Return an exit code in words, with the name of the signal that it means."""
    names = {128 + number: number.name for number in signal.Signals}
    return f"exit code {code}" + (f", {names[code]}" if code in names else "")


def has_begun(job: Job, listed: list[dict[str, Any]]) -> bool:
    """Return whether a job has started an attempt, or is older than the newest attempt."""
    if any(attempt.get("job") == job.id for attempt in listed):
        return True
    return bool(listed) and moment(listed[-1]["started"]) > moment(job.note["submitted"])


def moment(text: str) -> datetime:
    """Parse a time as written by `attempts.now`."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z")


def progress(run: RunDirectory, attempt: int) -> dict[str, Any]:
    """Return the progress report of rank 0 in attempt `attempt`; empty without one."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        report: dict[str, Any] = json.loads(read_whole(run.log / "progress.json"))
        if not mismatch(report, PROGRESS, "") and report["attempt"] == attempt and PROGRESS.keys() <= report.keys():
            is_possible = 0 <= report["seconds_per_step"] < LONGEST_STEP and isfinite(report["time"])
            return report if is_possible else {}
    return {}


def look(run: RunDirectory, scheduler: Scheduler) -> Status:
    """Determine the current state of a run."""
    try:
        current = facts(run, scheduler)
        state, reason = state_of(current)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Status(run=str(run.path), state="unknown", reason=f"unreadable: {error}")
    report = progress(run, len(current.attempts))
    if state == "running" and not reason and report and current.under_way:
        reason = _standstill(report)
    is_timed = report and state == "running" and current.under_way
    return Status(
        run=str(run.path),
        state=state,
        reason=reason,
        step=report.get("step", current.last_checkpoint),
        steps=current.steps,
        tokens=report.get("tokens"),
        loss=report.get("loss"),
        tokens_per_second=report.get("tokens_per_second"),
        seconds_per_step=report.get("seconds_per_step"),
        seconds_left=(report["steps"] - report["step"]) * report["seconds_per_step"] if is_timed else None,
        last_checkpoint=current.last_checkpoint,
        attempts=len(current.attempts),
        where=_where(current),
    )


def _standstill(report: dict[str, Any]) -> str:
    """Return a reason when there was no step for a long time, since hanging ranks look alive; else an empty text."""
    idle = time.time() - report["time"]
    return f"no step for {duration(idle)}" if idle > max(60, 20 * report["seconds_per_step"]) else ""


def _where(current: Facts) -> str:
    job, holder = current.job, current.holder
    if job and job.now and job.now.active:
        return f"slurm job {job.id}" + f" on {job.now.nodes}" * bool(job.now.nodes)
    if holder:
        return f"pid {holder.pid} on {holder.host}" if holder.pid else ""
    newest = current.attempts[-1] if current.attempts else {}
    if "job" in newest:
        return f"slurm job {newest['job']}"
    return " on ".join(newest[key] for key in ("cluster", "host") if newest.get(key))


def duration(seconds: float) -> str:
    """Format seconds as H:MM:SS, with days in front if there are any."""
    return str(timedelta(seconds=round(seconds)))
