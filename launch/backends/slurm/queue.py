"""Query and command SLURM jobs: scontrol for recent jobs, sacct (accounting) for older ones."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import replace

from launch.backends.jobs import JobState, NoQueueError, QueueError

PATIENCE = 60
"""Seconds to wait for one answer of SLURM; a busy controller is slow."""

NOT_INSTALLED = 127
"""Exit code of a shell for a command that does not exist."""

NEVER = "None"
"""A time in scontrol's output that has not come."""


def available() -> bool:
    """Return whether SLURM's commands are installed on this machine."""
    return shutil.which("scontrol") is not None


def state(job_id: str, folder: str | None = None) -> JobState:
    """Return the state of one job, or one state for a job array.

    Parameters
    ----------
    folder : str
        Working directory of the job. Ids start at 1 again in a new cluster, so a job with the same id in another
        folder is another job.

    Raises
    ------
    QueueError
        When the scheduler cannot be reached, so that it is not known whether the job exists.
    """
    answer = _ask("scontrol", "show", "job", "--oneliner", job_id)
    if answer.returncode == 0 and answer.stdout.strip():
        lines = [line for line in answer.stdout.split("\n") if line.strip()]
        if folder is not None and not all(f" WorkDir={folder} " in f"{line} " for line in lines):
            return JobState(state="UNKNOWN")
        return _together([_of_scontrol(line) for line in lines])
    error = answer.stderr.strip()
    if "Invalid job id" not in error:
        kind = NoQueueError if answer.returncode == NOT_INSTALLED else QueueError
        raise kind(f"no answer from SLURM about job {job_id}: {' '.join(error.split())}")
    return _of_sacct(job_id, folder)


def preempted(job_id: str) -> bool:
    """Return whether SLURM has preempted a job since its start; False when it gives no answer."""
    answer = _ask("scontrol", "show", "job", "--oneliner", job_id)
    values = _fields(answer.stdout)
    since = values.get("PreemptTime", NEVER)  # missing in a cluster without preemption
    return answer.returncode == 0 and since != NEVER and since >= values.get("StartTime", "")


def _together(tasks: list[JobState]) -> JobState:
    """Return one state for the tasks of a job array: active while one task is active, else the worst state."""
    if len(tasks) == 1:
        return tasks[0]
    active = [task for task in tasks if task.active]
    first = next((task for task in active if task.state == "RUNNING"), active[0] if active else None)
    if first:
        return replace(first, reason=f"{len(tasks) - len(active)} tasks of the array have ended")
    return max(tasks, key=lambda task: (task.result != 0, task.result))


def _of_scontrol(line: str) -> JobState:
    values = _fields(line)
    code, _, number = values.get("ExitCode", "0:0").partition(":")
    return JobState(
        state=values.get("JobState", "UNKNOWN"),
        exit_code=128 + int(number) if int(number or 0) else int(code),
        reason="" if values.get("Reason") == "None" else values.get("Reason", ""),
        nodes="" if values.get("NodeList") == "(null)" else values.get("NodeList", ""),
        restarts=int(values.get("Restarts", 0)),
        seconds=_seconds(values.get("RunTime", "")),
    )


def _fields(line: str) -> dict[str, str]:
    """Return the fields of a job that scontrol shows in one line."""
    # scontrol quotes nothing: the job name before these fields and the paths after them may contain anything.
    fields = re.split(r" UserId=.*?\(\d+\) GroupId=", line, maxsplit=1)[-1].partition(" Command=")[0]
    return dict(re.findall(r"(?:^|\s)([\w:/]+)=(\S*)", fields))


def _of_sacct(job_id: str, folder: str | None) -> JobState:
    fields = "State,ExitCode,NodeList,ElapsedRaw,WorkDir"
    answer = _ask("sacct", "--allocations", "--noheader", "--parsable2", "--jobs", job_id, "--format", fields)
    rows = [line.split("|", 4) for line in answer.stdout.split("\n") if line] if answer.returncode == 0 else []
    # Without accounting, SLURM forgets a job minutes after its end; sacct has no folder for jobs that never started.
    if not rows or (folder is not None and any(row[4] not in ("", folder) for row in rows)):
        return JobState(state="UNKNOWN")
    return _together([_of_sacct_row(*row) for row in rows])


def _of_sacct_row(word: str, code: str, nodes: str, seconds: str, _: str) -> JobState:
    number, _, signal_number = code.partition(":")
    return JobState(
        state=word.split()[0],  # "CANCELLED by 0"
        exit_code=128 + int(signal_number) if int(signal_number or 0) else int(number),
        nodes="" if nodes == "None assigned" else nodes,
        seconds=int(seconds or 0),
    )


def _seconds(text: str) -> int:
    """Convert D-HH:MM:SS to seconds."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if not match:
        return 0
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            env=os.environ | {"SLURM_TIME_FORMAT": "standard"},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PATIENCE,
            check=False,
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, NOT_INSTALLED, "", f"{command[0]} is not installed here")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"{command[0]} gave no answer within {PATIENCE} s")


def signal_job(job_id: str, name: str) -> None:
    """Send a signal to the ranks of a job.

    Raises
    ------
    QueueError
        When SLURM rejects the command.
    """
    _demand("scancel", "--signal", name, job_id)


def cancel(job_id: str) -> None:
    """End a job: SIGTERM, and after the cluster's KillWait SIGKILL."""
    _demand("scancel", job_id)


def _demand(*command: str) -> None:
    answer = _ask(*command)
    if answer.returncode:
        raise QueueError(f"{' '.join(command)} failed: {' '.join(answer.stderr.split())}")


def node_memory(partition: str | None) -> float | None:
    """Return the GiB of the smallest node of a partition (default: the cluster's default partition); None: unknown."""
    only = ["--partition", partition] if partition else []
    try:
        answer = subprocess.run(
            ["sinfo", "--noheader", "--Node", *only, "--format", "%P %m"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=20,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    pattern = r"\S+" if partition else r"\S+\*"
    sizes = re.findall(rf"^{pattern} (\d+)\+?$", answer.stdout, re.MULTILINE)
    return min((int(size) / 1024 for size in sizes), default=None)
