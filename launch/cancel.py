"""``wellread cancel RUN [--now] [--timeout SECONDS]``: ask a run to save, then end it."""

from __future__ import annotations

import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import psutil

from launch import attempts
from launch.backends import base as backends
from launch.backends.jobs import WAITING, Job, JobState
from launch.state import EVALUATION, Scheduler, facts, look, open_run, progress
from wellread.cli import new_parser, parse
from wellread.errors import FAILURE, UserError
from wellread.escapes import Own
from wellread.run import Holder, RunDirectory
from wellread.streams import print_error

EXAMPLES = """examples:
  wellread cancel runs/tiny-sample                   save a checkpoint, then end; the same `wellread run` resumes it
  wellread cancel runs/tiny-sample --timeout 60      end after a minute, with or without a checkpoint
  wellread cancel runs/tiny-sample --now             end at once; the last checkpoint remains

The exit code is 1 when the run ended without a new checkpoint and lost steps, unless --now was set.
"""
POLL = 0.3
REPORT = 30.0
"""Seconds between two "waiting" lines when stderr is not a terminal."""
GAP = 1.0
"""Seconds between two signals to one process: the kernel merges equal signals that are pending at the same time."""
REMIND = 15.0
"""Seconds after which a job is signaled again: its tasks ignore signals while they start."""
SECONDS_TO_END = 120.0
"""How long a process or job may take to end after it was killed: a little longer than SLURM's KillWait."""

SECONDS_TO_LET_GO = 5.0
"""How long the run's lock may still be held after that."""


def main(argv: list[str]) -> int:
    """Run ``wellread cancel``; return the exit code."""
    parser = new_parser("wellread cancel", "Ask a run to save a checkpoint, then end it.", EXAMPLES)
    parser.add_argument("run", help="Run directory.")
    parser.add_argument("--now", action="store_true", help="End the run at once, without a checkpoint.")
    parser.add_argument(
        "--timeout", type=float, default=600.0, help="Seconds to wait for the checkpoint, then end the run."
    )
    arguments = parse(parser, argv)
    if arguments.timeout < 0:
        raise UserError(f"--timeout {arguments.timeout:g}: must not be negative; use --now to end the run at once")
    try:
        return _cancel(open_run(arguments.run), arguments.timeout, arguments.now)
    except RuntimeError as error:  # SLURM gives no answer or rejects the command
        print_error(str(error))
        return FAILURE


def _cancel(run: RunDirectory, timeout: float, now: bool) -> int:
    """End the running processes and jobs, and cancel waiting jobs; return the exit code."""
    holder = run.holder()
    launcher = _launcher(holder)
    jobs = [] if launcher else _active(run)
    if holder and not launcher and all(job.kind == EVALUATION for job, _ in jobs):
        raise UserError(_foreign(run, holder))
    if not holder and not jobs:
        status = look(run, Scheduler())
        print(f"{run.path}: nothing to cancel: {status.in_words}")
        return 0
    at_start = facts(run, Scheduler())
    if launcher:
        _end_launcher(run, launcher, timeout, now)
    _end_jobs(run, timeout, now)
    if not at_start.under_way:
        print(f"{run.path}: ended before its ranks started" if launcher else f"{run.path}: no job is queued or running")
        return 0
    _note_end(run, len(at_start.attempts))
    return _report(run, now)


# --- on this machine


def _launcher(holder: Holder | None) -> psutil.Process | None:
    """Return the process that holds the run's lock if it is a ``wellread run`` on this machine."""
    if holder is None or holder.host != socket.gethostname():
        return None
    with suppress(psutil.Error):
        process = psutil.Process(holder.pid)
        words = process.cmdline()
        if any(Path(program).name in ("wellread", "launch") and word == "run" for program, word in pairwise(words)):
            return process
    return None


def _foreign(run: RunDirectory, holder: Holder) -> str:
    """Return the reason why the process that holds a run cannot be ended from here."""
    if holder.host and holder.host != socket.gethostname():
        return f"{run.path}: runs on {holder.host}; run `wellread cancel {run.path}` there"
    return (
        f"{run.path}: in use by process {holder.pid}, which is not a `wellread run` of this machine; nothing was ended"
    )


def _end_launcher(run: RunDirectory, launcher: psutil.Process, timeout: float, now: bool) -> None:
    """Ask the launcher to save and end; end it at once with `now`, or when there is no checkpoint in time."""
    children = launcher.children(recursive=True)
    print(f"{run.path}: asked process {launcher.pid} to " + ("end at once" if now else "save and end"), flush=True)
    _signal(run, launcher)
    ended = _wait(lambda: not _holds(run, launcher), GAP if now else timeout)
    if not ended:
        if not now:
            print(f"{run.path}: no checkpoint within {timeout:g} s; ending it at once", flush=True)
        _signal(run, launcher)
        ended = _wait(lambda: not _holds(run, launcher), SECONDS_TO_END)
    if not ended:
        raise RuntimeError(f"{run.path}: process {launcher.pid} does not end; try kill -9 {launcher.pid}")
    for child in children:  # if the launcher was still preparing: the compilation of the corpus
        with suppress(psutil.Error):
            child.terminate()


def _signal(run: RunDirectory, launcher: psutil.Process) -> None:
    try:
        launcher.send_signal(signal.SIGTERM)
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied:
        raise UserError(
            f"{run.path}: process {launcher.pid} belongs to {launcher.username()}; only this user can end it"
        ) from None


def _holds(run: RunDirectory, launcher: psutil.Process) -> bool:
    holder = run.holder()
    return holder is not None and holder.pid == launcher.pid and launcher.is_running()


# --- on SLURM


def _active(run: RunDirectory) -> list[tuple[Job, JobState]]:
    """Return the jobs of a run that are queued or running, oldest first."""
    states = [(job, job.state()) for job in backends.jobs_of(run)]
    return [(job, state) for job, state in states if state.active]


def _end_jobs(run: RunDirectory, timeout: float, now: bool) -> None:
    """Cancel waiting jobs, dependent ones first; ask the training job to save; then cancel the remaining jobs.

    Raises
    ------
    RuntimeError
        When SLURM gives no answer or rejects a command.
    """
    running = []
    for job, state in reversed(_active(run)):
        if state.state in WAITING or job.kind == EVALUATION:
            _drop(run, job, state)
        else:
            running.append(job)
    for job in running:
        _stop(run, job, timeout, now)
    for job, state in reversed(_active(run)):  # requeued in the meantime
        if state.state != "COMPLETING":
            _drop(run, job, state)


def _drop(run: RunDirectory, job: Job, state: JobState) -> None:
    job.cancel()
    print(f"{run.path}: canceled job {job.id} ({job.kind}, was {state.state.lower()})", flush=True)


def _stop(run: RunDirectory, job: Job, timeout: float, now: bool) -> None:
    """Ask a running job to save and end, and wait; cancel it with `now`, or when there is no checkpoint in time."""
    ended = False
    if now or not facts(run, Scheduler()).under_way:
        print(f"{run.path}: canceling job {job.id}" + " before its ranks start" * (not now), flush=True)
    else:
        print(f"{run.path}: asked job {job.id} to save and end", flush=True)
        ended = _wait(_reminded(job), timeout)
        if not ended:
            print(f"{run.path}: no checkpoint within {timeout:g} s; canceling job {job.id}", flush=True)
    if not ended:
        job.cancel()
        ended = _wait(lambda: not _is_active(job), SECONDS_TO_END)
    if not ended:
        raise RuntimeError(f"{run.path}: job {job.id} does not end; check squeue")


def _reminded(job: Job) -> Callable[[], bool]:
    """Return a function that says whether the job ended or is queued again; calls also signal the job repeatedly."""
    last = float("-inf")

    def ended() -> bool:
        nonlocal last
        if not _is_active(job):
            return True
        if time.monotonic() > last + REMIND:
            with suppress(RuntimeError):  # the job ends now, or the controller restarts: the next call shows which
                job.signal("TERM")
                last = time.monotonic()
        return False

    return ended


def _is_active(job: Job) -> bool:
    try:
        state = job.state()
    except RuntimeError:  # a restarting controller answers again soon
        return True
    return state.active and state.state not in WAITING


# --- both


def _wait(ended: Callable[[], bool], patience: float) -> bool:
    """Wait until `ended` returns True, at most `patience` seconds, and show the time; return whether it did."""
    began = reported = time.monotonic()
    terminal = sys.stderr.isatty()
    while not (has_ended := ended()) and (now := time.monotonic()) < began + patience:
        if terminal:
            print(Own(f"\rwaiting, {now - began:.0f} s"), end="", file=sys.stderr, flush=True)
        elif now > reported + REPORT:
            print(f"waiting, {now - began:.0f} s", file=sys.stderr, flush=True)
            reported = now
        time.sleep(POLL)
    if terminal:
        print(Own("\r\x1b[K"), end="", file=sys.stderr, flush=True)
    return has_ended


def _note_end(run: RunDirectory, number: int) -> None:
    """Write the end of an attempt into the manifest if its launcher was killed before it could."""
    with suppress(UserError), run.lock(SECONDS_TO_LET_GO):  # UserError: the run was launched again
        if "ended" not in run.manifest()["attempts"][number - 1]:
            attempts.end(run, number, 128 + signal.SIGTERM)


def _report(run: RunDirectory, now: bool) -> int:
    """Print the result; return the exit code."""
    status = look(run, Scheduler())
    saved = -1 if status.last_checkpoint is None else status.last_checkpoint
    if status.state == "finished":
        print(f"{run.path}: finished at step {saved}, before it could be stopped")
        return 0
    if status.state == "failed":
        print(f"{run.path}: failed while stopping ({status.reason}); see wellread logs {run.path}")
        return FAILURE
    reached = progress(run, status.attempts).get("step", saved)
    where = f"step {saved}, its last checkpoint" if saved >= 0 else "the beginning"
    if reached > max(saved, 0):
        print(
            f"{run.path}: ended without a new checkpoint, at step {reached} or later; "
            f"run the same command to resume from {where}"
        )
        return 0 if now else FAILURE
    outcome = f"stopped at step {saved}, saved" if saved >= 0 else "ended before its first step"
    print(f"{run.path}: {outcome}; run the same command to resume")
    return 0
