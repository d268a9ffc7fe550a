"""Ask a run for a save, then end it: ``python -m launch cancel RUN [--now] [--timeout SECONDS]``."""

from __future__ import annotations

import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import psutil

from launch import attempts
from launch.backends import base as backends
from launch.backends.jobs import WAITING, Job, JobState
from launch.state import EVALUATION, Scheduler, facts, look, open_run, progress
from wellread.cli import new_parser, parse
from wellread.errors import FAILURE, UserError, print_error
from wellread.run import Holder, RunDirectory

EXAMPLES = """examples:
  python -m launch cancel runs/tiny-sample                   save, then end; the same `launch run` continues
  python -m launch cancel runs/tiny-sample --timeout 60      end it after a minute, saved or not
  python -m launch cancel runs/tiny-sample --now             end it at once; its last checkpoint stays

The exit code is 1 when what the run has read was lost for want of a save, unless --now asked for that.
"""
POLL = 0.3
REPORT = 30.0
"""Seconds between two lines of waiting where there is no terminal."""
GAP = 1.0
"""Seconds between two signals to one process: of two equal ones that wait at the same time, one is lost."""
REMIND = 15.0
"""Seconds after which a job is signalled again: its tasks ignore it while they start."""
SECONDS_TO_END = 120.0
"""How long what is ended at once may take to be gone: SLURM's KillWait, and a little."""

SECONDS_TO_LET_GO = 5.0
"""How long the run's lock may still be held then."""


def main(argv: list[str]) -> int:
    """Answer ``launch cancel``; return the exit code."""
    parser = new_parser("python -m launch cancel", "Ask a run for a save, then end it.", EXAMPLES)
    parser.add_argument("run", help="Run directory.")
    parser.add_argument("--now", action="store_true", help="End it at once, without a save.")
    parser.add_argument("--timeout", type=float, default=600.0, help="Seconds to wait for the save before it is ended.")
    arguments = parse(parser, argv)
    if arguments.timeout < 0:
        raise UserError(f"--timeout {arguments.timeout:g}: cannot be below 0; --now ends the run at once")
    try:
        return _cancel(open_run(arguments.run), arguments.timeout, arguments.now)
    except RuntimeError as error:  # SLURM gives no answer, or refuses
        print_error(str(error))
        return FAILURE


def _cancel(run: RunDirectory, timeout: float, now: bool) -> int:
    """End what runs and what waits; return the exit code."""
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
        print(
            f"{run.path}: ended before its ranks began" if launcher else f"{run.path}: nothing of it is queued or runs"
        )
        return 0
    _note_end(run, len(at_start.attempts))
    return _report(run, now)


# --- on this machine


def _launcher(holder: Holder | None) -> psutil.Process | None:
    """The ``launch run`` of this machine that holds the run, if it is that."""
    if holder is None or holder.host != socket.gethostname():
        return None
    with suppress(psutil.Error):
        process = psutil.Process(holder.pid)
        words = process.cmdline()
        if ("launch", "run") in pairwise(words):
            return process
    return None


def _foreign(run: RunDirectory, holder: Holder) -> str:
    """Why what holds a run cannot be ended from here."""
    if holder.host and holder.host != socket.gethostname():
        return f"{run.path}: runs on {holder.host}; run `python -m launch cancel {run.path}` there"
    return f"{run.path}: held by process {holder.pid}, which is no `launch run` of this machine; nothing was ended"


def _end_launcher(run: RunDirectory, launcher: psutil.Process, timeout: float, now: bool) -> None:
    """Ask the launcher to save and to end; end it at once when told to, or when the save does not come."""
    children = launcher.children(recursive=True)
    print(f"{run.path}: asked process {launcher.pid} to " + ("end at once" if now else "save and end"), flush=True)
    _signal(run, launcher)
    ended = _wait(lambda: not _holds(run, launcher), GAP if now else timeout)
    if not ended:
        if not now:
            print(f"{run.path}: no save within {timeout:g} s; ending it at once", flush=True)
        _signal(run, launcher)
        ended = _wait(lambda: not _holds(run, launcher), SECONDS_TO_END)
    if not ended:
        raise RuntimeError(f"{run.path}: process {launcher.pid} does not end; try kill -9 {launcher.pid}")
    for child in children:  # of a launcher that was still preparing: the compilation of the corpus
        with suppress(psutil.Error):
            child.terminate()


def _signal(run: RunDirectory, launcher: psutil.Process) -> None:
    try:
        launcher.send_signal(signal.SIGTERM)
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied:
        raise UserError(
            f"{run.path}: process {launcher.pid} belongs to {launcher.username()}, who alone can end it"
        ) from None


def _holds(run: RunDirectory, launcher: psutil.Process) -> bool:
    holder = run.holder()
    return holder is not None and holder.pid == launcher.pid and launcher.is_running()


# --- on SLURM


def _active(run: RunDirectory) -> list[tuple[Job, JobState]]:
    """Jobs of a run that are queued or running, oldest first."""
    states = [(job, job.state()) for job in backends.jobs_of(run)]
    return [(job, state) for job, state in states if state.active]


def _end_jobs(run: RunDirectory, timeout: float, now: bool) -> None:
    """Cancel jobs that wait, dependent ones first; ask the one that trains for a save; cancel what is left.

    Raises
    ------
    RuntimeError
        When SLURM gives no answer, or refuses.
    """
    running = []
    for job, state in reversed(_active(run)):
        if state.state in WAITING or job.kind == EVALUATION:
            _drop(run, job, state)
        else:
            running.append(job)
    for job in running:
        _stop(run, job, timeout, now)
    for job, state in reversed(_active(run)):  # queued again meanwhile
        if state.state != "COMPLETING":
            _drop(run, job, state)


def _drop(run: RunDirectory, job: Job, state: JobState) -> None:
    job.cancel()
    print(f"{run.path}: cancelled job {job.id} ({job.kind}, was {state.state.lower()})", flush=True)


def _stop(run: RunDirectory, job: Job, timeout: float, now: bool) -> None:
    """Ask a running job to save and to end, and wait; cancel it when told to, or when the save does not come."""
    ended = False
    if now or not facts(run, Scheduler()).under_way:
        print(f"{run.path}: cancelling job {job.id}" + " before its ranks begin" * (not now), flush=True)
    else:
        print(f"{run.path}: asked job {job.id} to save and end", flush=True)
        ended = _wait(_reminded(job), timeout)
        if not ended:
            print(f"{run.path}: no save within {timeout:g} s; cancelling job {job.id}", flush=True)
    if not ended:
        job.cancel()
        ended = _wait(lambda: not _is_active(job), SECONDS_TO_END)
    if not ended:
        raise RuntimeError(f"{run.path}: job {job.id} does not end; see squeue")


def _reminded(job: Job) -> Callable[[], bool]:
    """Whether the job has ended or waits in the queue again; asking signals it, now and then again."""
    last = float("-inf")

    def ended() -> bool:
        nonlocal last
        if not _is_active(job):
            return True
        if time.monotonic() > last + REMIND:
            with suppress(RuntimeError):  # it ends just now, or the controller restarts: the next answer tells
                job.signal("TERM")
                last = time.monotonic()
        return False

    return ended


def _is_active(job: Job) -> bool:
    try:
        state = job.state()
    except RuntimeError:  # a controller that restarts is back in a moment
        return True
    return state.active and state.state not in WAITING


# --- both


def _wait(ended: Callable[[], bool], patience: float) -> bool:
    """Wait until it has ended, at most `patience` seconds; whether it has. Shows that time passes."""
    began = reported = time.monotonic()
    terminal = sys.stderr.isatty()
    while not (has_ended := ended()) and (now := time.monotonic()) < began + patience:
        if terminal:
            print(f"\rwaiting, {now - began:.0f} s", end="", file=sys.stderr, flush=True)
        elif now > reported + REPORT:
            print(f"waiting, {now - began:.0f} s", file=sys.stderr, flush=True)
            reported = now
        time.sleep(POLL)
    if terminal:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    return has_ended


def _note_end(run: RunDirectory, number: int) -> None:
    """Note the end of an attempt whose launcher could not: it was ended at once, or before it listened."""
    with suppress(UserError), run.lock(SECONDS_TO_LET_GO):  # UserError: somebody else has launched it again
        if "ended" not in run.manifest()["attempts"][number - 1]:
            attempts.end(run, number, 128 + signal.SIGTERM)


def _report(run: RunDirectory, now: bool) -> int:
    """Say where the run stands; return the exit code."""
    status = look(run, Scheduler())
    saved = -1 if status.last_checkpoint is None else status.last_checkpoint
    if status.state == "finished":
        print(f"{run.path}: finished at step {saved}, before it could be stopped")
        return 0
    if status.state == "failed":
        print(f"{run.path}: failed while it was to stop ({status.reason}); see python -m launch logs {run.path}")
        return FAILURE
    reached = progress(run, status.attempts).get("step", saved)
    where = f"step {saved}, its last checkpoint" if saved >= 0 else "the beginning"
    if reached > max(saved, 0):
        print(f"{run.path}: ended without a save, at step {reached} or later; the same command continues from {where}")
        return 0 if now else FAILURE
    outcome = f"stopped at step {saved}, saved" if saved >= 0 else "ended before its first step"
    print(f"{run.path}: {outcome}; the same command continues")
    return 0
