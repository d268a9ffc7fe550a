"""The tasks of SLURM jobs: callables that submitit serializes and srun starts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch import attempts, children, ladder, ops
from launch.backends.elastic import SECONDS_TO_MEET, SECONDS_TO_SAVE
from launch.backends.slurm import queue
from launch.network import own_address, with_interface
from wellread.checkpoint import list_checkpoints
from wellread.errors import BAD_INPUT, UserError
from wellread.files import write_json
from wellread.planning.plan import Plan
from wellread.processes import ATTEMPT_NUMBER, LAUNCHER
from wellread.run import RunDirectory
from wellread.streams import print_error

if TYPE_CHECKING:
    from submitit import JobEnvironment
    from submitit.helpers import DelayedSubmission

LOCK_PATIENCE = 300.0
"""Seconds that a requeued job waits until the last processes of its previous start are gone."""
FIRST_PORT, PORTS = 20_000, 20_000
GRACE = 20.0
"""Seconds that rank 0 has to end by itself after another rank has failed."""
SECONDS_TO_END = 5.0
"""How long a rank may take to end on request after another rank has failed; less than SLURM waits before SIGKILL."""
SECONDS_FOR_NOTES = 3.0
"""How long the error files of other ranks may take to become visible on a shared filesystem."""
MARGIN = 10
"""Seconds before the time limit at which waiting for a save ends, so that the job can still be requeued."""


@dataclass(frozen=True)
class Meeting:
    """The rendezvous of the ranks of one start; rank 0 writes it to the run directory for the other ranks."""

    address: str
    port: int
    attempt: int


@dataclass(frozen=True)
class RankTask:
    """Runs one rank of a training run as a child process, and requeues the job when its time limit is near."""

    run: str
    """Absolute path of the run directory."""
    arguments: tuple[str, ...]
    """Arguments of Python, e.g. ``-m finetune train RUN``."""
    variables: dict[str, str]
    requeues: int
    limit: int
    """Time limit of the job in seconds."""
    ladder: bool = True
    """After an out-of-memory error, continue with the next strategy that fits."""

    def __call__(self) -> int:
        """Run the rank; exit with its exit code."""
        from submitit import JobEnvironment

        job = JobEnvironment()
        child = Child(self, job, Signals())
        if job.global_rank > 0:
            code = self._follow(child)
        else:
            try:
                code = self._lead(child)
            except UserError as error:
                print_error(str(error))
                code = BAD_INPUT
        if code:
            sys.exit(code)
        return 0

    def checkpoint(self) -> DelayedSubmission:
        """Return what submitit requeues: the same task."""
        from submitit.helpers import DelayedSubmission

        keep_pickles_private()
        return DelayedSubmission(self)

    def _follow(self, child: Child) -> int:
        """Run a rank other than 0, with the rendezvous that rank 0 has written."""
        code = child.run(_await_meeting(self._meeting_file(child.job)))
        if child.signals.number:
            return 0  # a failure of this task would end the job step before rank 0 has saved or requeued the job
        if code:  # for the same reason wait: rank 0 ends soon and decides about requeueing, then srun ends this task
            deadline = time.monotonic() + GRACE + 60
            while not child.signals.number and time.monotonic() < deadline:
                time.sleep(0.1)
        return code

    def _lead(self, child: Child) -> int:
        """Run rank 0: also write the manifest, compile ops, choose the rendezvous, and requeue the job if necessary."""
        run, job = RunDirectory.open(self.run), child.job
        restarts = _restarts()
        if restarts > self.requeues:
            raise UserError(f"requeued {restarts} times, {self.requeues} allowed; launch it again to resume")
        with run.lock(LOCK_PATIENCE):
            plan, before = Plan.open(run.plan_file), _last_step(run)
            if plan.ranks != job.num_tasks:
                raise UserError(
                    f"{run.path}: its plan is now for {plan.ranks} ranks, and this job has {job.num_tasks}, because "
                    "the run was launched in another way in the meantime; launch it again to resume"
                )
            for op in ops.needed(plan):
                ops.ensure(op, self.variables)
            layout = {"job": job.job_id, "restart": restarts, "hosts": list(job.hostnames)}
            attempt = attempts.begin(run, plan, layout)
            meeting = Meeting(own_address(job.hostnames), free_port(job.job_id, restarts), attempt)
            write_json(self._meeting_file(job), vars(meeting))
            code = child.run(meeting)
            if child.timed_out and (first := attempts.first_error(run, attempt)):
                code = attempts.exit_code(first)
            attempts.end(run, attempt, code)
            again = code != 0 and _is_pause(child.signals.number, job.job_id)
            if code and not child.signals.number:
                again = self._continues(run, plan, attempt, before, child.timed_out)
            if again and restarts >= self.requeues:
                print_error(f"stopped: already requeued {restarts} times; launch it again to resume")
                again = False
        if again:
            child.signals.hand_back()  # submitit's own handler: it requeues the job and exits
        return code

    def _continues(self, run: RunDirectory, plan: Plan, attempt: int, before: int, timed_out: bool) -> bool:
        """Print why an attempt failed; return whether to requeue the job: a rank was lost, or memory ran out.

        Parameters
        ----------
        before : int
            Step of the last checkpoint before the attempt.
        timed_out : bool
            Rank 0 has waited for a failed rank without success.
        """
        time.sleep(SECONDS_FOR_NOTES)
        attempts.show_first_error(run, attempt)
        first = attempts.first_error(run, attempt)
        all_live = timed_out and first is not None and "signal" not in first  # as rank 0, the others wait for that rank
        lost = [] if all_live else attempts.lost_ranks(run, attempt, plan.ranks)
        failure = ladder.note(run, plan, attempt, [] if all_live else attempts.silent_ranks(run, attempt, plan.ranks))
        if failure:
            return self.ladder and ladder.next_plan(run, plan) is not None
        # Requeue only after a new save: otherwise the rank would be lost again, e.g. on a broken node.
        if not lost or _last_step(run) <= before:
            return False
        print(f"lost rank {', '.join(map(str, lost))}: resuming from step {_last_step(run)}", flush=True)
        return True

    def _meeting_file(self, job: JobEnvironment) -> Path:
        return Path(self.run) / "submit" / f"{job.job_id}-{_restarts()}.meeting.json"


class Child:
    """The process of a rank; its task watches it."""

    def __init__(self, task: RankTask, job: JobEnvironment, signals: Signals) -> None:
        self.job, self.signals = job, signals
        self._task, self._began, self._parent = task, time.monotonic(), os.getppid()
        self.timed_out = False
        """Whether the rank was killed because it waited for a failed rank."""

    def run(self, meeting: Meeting) -> int:
        """Run the rank, forward signals to it, and return its exit code: 128 + S when signal S ended it."""
        with ladder.watched(self._run, meeting.attempt, self.job.node):
            return self._run_rank(meeting)

    def _run_rank(self, meeting: Meeting) -> int:
        process = subprocess.Popen(
            [sys.executable, "-u", *self._task.arguments],
            env=os.environ | self._variables(meeting),
            preexec_fn=_hold_back_usr2,
        )
        passed, deadline, looked = 0, float("inf"), 0.0
        while process.poll() is None:
            time.sleep(0.1)
            now = time.monotonic()
            if os.getppid() != self._parent:  # SLURM's process is gone, so nothing else would end this rank
                process.kill()
            elif self.signals.number != passed:
                passed = self.signals.number
                process.send_signal(passed)
                has_failed = attempts.first_error(self._run, meeting.attempt)  # then no rank can save
                deadline = now + (SECONDS_TO_END if has_failed else SECONDS_TO_SAVE)
                if passed == signal.SIGUSR2:  # near the time limit the job must be requeued, saved or not
                    deadline = max(now + 5, min(deadline, self._began + self._task.limit - MARGIN))
            elif self.job.global_rank == 0 and deadline == float("inf") and now > looked + 1:
                looked = now
                if attempts.first_error(self._run, meeting.attempt):  # rank 0 may wait for the failed rank forever
                    deadline = now + GRACE
            if now > deadline:
                self.timed_out = not passed
                process.kill()
        if process.returncode >= 0:
            return process.returncode
        if self.timed_out:
            attempts.note_error(self._run, meeting.attempt, self.job.global_rank, "timed out waiting for a failed rank")
        elif not self.signals.number:
            attempts.note_signal(self._run, meeting.attempt, self.job.global_rank, -process.returncode)
        return 128 - process.returncode

    @property
    def _run(self) -> RunDirectory:
        return RunDirectory(Path(self._task.run))

    def _variables(self, meeting: Meeting) -> dict[str, str]:
        job = self.job
        rank = {
            "RANK": job.global_rank,
            "LOCAL_RANK": job.local_rank,
            "WORLD_SIZE": job.num_tasks,
            "LOCAL_WORLD_SIZE": job.num_tasks // job.num_nodes,
            "MASTER_ADDR": meeting.address,
            "MASTER_PORT": meeting.port,
            ATTEMPT_NUMBER: meeting.attempt,
            LAUNCHER: os.getpid(),
        }
        return with_interface(self._task.variables, meeting.address) | {k: str(v) for k, v in rank.items()}


@dataclass(frozen=True)
class CommandTask:
    """Runs ``python ARGUMENTS``, e.g. an evaluation, as the only task of a job."""

    arguments: tuple[str, ...]
    variables: dict[str, str]

    def __call__(self) -> int:
        """Run the command; exit with its exit code."""
        process = subprocess.run([sys.executable, *self.arguments], env=os.environ | self.variables, check=False)
        if code := children.exit_code(self.arguments, process.returncode):
            sys.exit(code)
        return 0


class Signals:
    """Stores the last signal from SLURM, to be handled later; submitit's own handlers would act at once."""

    def __init__(self) -> None:
        self.number = 0
        self._requeue: Callable[[int, types.FrameType | None], Any] | None = None
        signal.signal(signal.SIGTERM, self._remember)
        before = signal.signal(signal.SIGUSR2, self._remember)
        if callable(before):
            self._requeue = before

    def _remember(self, number: int, frame: types.FrameType | None) -> None:
        self.number = number

    def hand_back(self) -> None:
        """Call submitit's own handler of SIGUSR2."""
        assert self._requeue, "submitit installs its handler before it calls a task"
        self._requeue(signal.SIGUSR2, None)


def keep_pickles_private() -> None:
    """Let submitit write tasks to files that only this user can read: a task contains the environment with its secrets.

    The umask stays as it is for sbatch, whose job inherits it.
    """
    from submitit.core.utils import DelayedSubmission

    write = DelayedSubmission.dump
    if write.__module__ == __name__:
        return

    def dump(self: DelayedSubmission, filepath: str | Path) -> None:
        before = os.umask(0o077)
        try:
            write(self, filepath)
        finally:
            os.umask(before)

    DelayedSubmission.dump = dump


def _hold_back_usr2() -> None:
    """In the child: keep SIGUSR2 pending until the rank handles it; its default action is to kill the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})


def _is_pause(number: int, job_id: str) -> bool:
    """Return whether a signal asks to save and requeue: USR2, or the SIGTERM that SLURM sends when it preempts a job.

    SLURM sends USR2 before a preemption only with ``PreemptParameters=send_user_signal``.
    """
    return number == signal.SIGUSR2 or (number == signal.SIGTERM and queue.preempted(job_id))


def _last_step(run: RunDirectory) -> int:
    """Return the step of the newest checkpoint; 0 without any."""
    return max((checkpoint.step for checkpoint in list_checkpoints(run.checkpoints)), default=0)


def _restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))


def free_port(job_id: str, restart: int) -> int:
    """Return a port derived from the job id, or the next free port on this machine."""
    number = int("".join(filter(str.isdigit, job_id)) or 0)
    for step in range(100):
        port = FIRST_PORT + (number * 31 + restart + step) % PORTS
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
    raise RuntimeError(f"no free port among 100 from {FIRST_PORT + number * 31 % PORTS} on {socket.gethostname()}")


def _await_meeting(path: Path) -> Meeting:
    deadline = time.monotonic() + SECONDS_TO_MEET
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError):
            return Meeting(**json.loads(path.read_text(encoding="utf-8")))
        time.sleep(0.2)
    raise RuntimeError(
        f"{path} did not appear within {SECONDS_TO_MEET} s; put the run directory on a shared filesystem"
    )
