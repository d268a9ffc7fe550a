"""SLURM jobs: submit them through submitit, and follow them until they end."""

from __future__ import annotations

import fcntl
import re
import shlex
import subprocess
import sys
import time
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Any

from launch import attempts
from launch.backends.jobs import Job, JobState, QueueError
from launch.backends.slurm import queue
from launch.backends.slurm.rejections import rejection
from launch.backends.slurm.task import CommandTask, RankTask, keep_pickles_private
from launch.cluster import GPUS, ClusterFile, minutes
from wellread.errors import UserError
from wellread.files import open_unlinked, read_json, write_json
from wellread.run import TIME, RunDirectory
from wellread.streams import print_error

FOLLOW_SECONDS = 2.0
SECONDS_FOR_A_REASON = 2.0
"""How long SLURM's scheduler may take to give the reason why a job waits."""
STUCK = {
    "PartitionNodeLimit": "the partition has fewer nodes; cancel the job and lower --nodes",
    "PartitionTimeLimit": "the partition has a lower time limit; cancel the job and lower --time",
    "BadConstraints": "no node has what the cluster file requests; cancel the job and correct the file",
    "AssocMaxNodePerJobLimit": "your account allows fewer nodes; cancel the job and lower --nodes",
    "QOSMaxNodePerJobLimit": "the QOS allows fewer nodes; cancel the job and lower --nodes",
    "QOSMaxWallDurationPerJobLimit": "the QOS has a lower time limit; cancel the job and lower --time",
}
"""SLURM's reason for a job that will never start -> explanation and what to do."""
INTENT = "intent.json"
"""File in RUN/submit while a job is being submitted: its future entry in jobs.json."""
LOCK = "jobs.lock"
"""File in RUN/submit that a process locks while it submits a job."""
TEMPORARY = re.compile(r"[0-9a-f]{32}\.pkl|\.submission_file_[0-9a-f]{32}\.sh")
"""Names that submitit gives to the files of a job before it has an id."""
NUMBER = re.compile(r"[0-9]+")
NOTE = {"kind": str, "submitted": TIME, "tasks": int, "folder": str}
"""Shape of that file; an entry of jobs.json also has the `id` of the job."""


def check(run: RunDirectory) -> None:
    """Refuse a run directory that cannot be passed to SLURM safely.

    Raises
    ------
    UserError
        When its path contains characters with a special meaning in SLURM or in the comment lines of a shell script.
    """
    path = str(run.path.resolve())
    if re.search(r"[\x00-\x1f\x7f%\\]", path):
        raise UserError(
            f"--out {path!r}: %, \\ and control characters have a special meaning in SLURM scripts; "
            "choose a path without them"
        )


def parameters(
    cluster: ClusterFile,
    *,
    name: str,
    nodes: int,
    ranks_per_node: int,
    code: Path,
    after: str | None = None,
    whole_memory: bool = False,
) -> dict[str, Any]:
    """Return the SLURM parameters of a job, with submitit's names.

    Parameters
    ----------
    code : Path
        Folder in which tasks start, so that they import the code in it.
    after : str
        Id of a job that must succeed before this one starts.
    whole_memory : bool
        Whether the job needs all memory of its nodes, unless the cluster file says how much.
    """
    memory = f"{round(cluster.memory * 1024)}M" if cluster.memory else None
    if (
        whole_memory
        and not cluster.memory
        and not any(key.replace("_", "-").startswith("mem") for key in cluster.sbatch)
    ):
        memory = "0"  # all of it; without --mem, a job may get only the default of its partition
    options = {
        "job_name": name,
        "nodes": nodes,
        "ntasks_per_node": ranks_per_node,
        "time": minutes(cluster.time),
        "signal_delay_s": cluster.signal_delay,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "gres": _gres(cluster, ranks_per_node),
        "mem": memory,
        "cpus_per_task": cluster.cpus_per_rank,
        "exclusive": cluster.exclusive or None,
        "setup": list(cluster.setup) or None,
        "dependency": f"afterok:{after}" if after else None,
        # When one rank fails, srun ends the others, also those that wait in a collective.
        "srun_args": ["--kill-on-bad-exit=1", *cluster.srun],
    }
    additional: dict[str, Any] = {"chdir": str(code), "requeue": True}
    if after:
        additional["kill-on-invalid-dep"] = "yes"
    directives = {k: v for k, v in options.items() if v is not None}
    # submitit would add its own wckey, which clusters that check wckeys refuse.
    return directives | {"wckey": None, "additional_parameters": additional | cluster.sbatch}


def _gres(cluster: ClusterFile, ranks_per_node: int) -> str | None:
    """Return the cluster's resources with one GPU per rank on a node."""
    if not cluster.gpus:
        return cluster.gres
    return GPUS.sub(lambda match: f"gpu{match['type'] or ''}:{ranks_per_node}", cluster.gres or "")


def sbatch_text(cluster: ClusterFile, run: RunDirectory, options: dict[str, Any]) -> str:
    """Return the script that would be passed to sbatch."""
    from submitit.slurm.slurm import _make_sbatch_string

    folder = run.submit.resolve()
    command = f"{_python(cluster)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    text: str = _make_sbatch_string(command=command, folder=folder, **options)
    return text


def _python(cluster: ClusterFile) -> str:
    return shlex.quote(cluster.python or sys.executable)


def submit(
    cluster: ClusterFile,
    run: RunDirectory,
    tasks: list[RankTask] | list[CommandTask],
    options: dict[str, Any],
    kind: str,
) -> str:
    """Submit a job, or a job array for several tasks; write its id to RUN/submit/jobs.json and return it.

    Other processes that submit jobs of this run wait.

    Raises
    ------
    UserError
        When SLURM rejects the job; one line with SLURM's reason and what to do.
    """
    if not queue.available():
        where = f"--cluster {cluster.path or cluster.name}"
        raise UserError(f"{where}: sbatch not found; log in to a node of the cluster, or use --cluster local")
    run.refuse_links()
    run.submit.mkdir(exist_ok=True)
    with open_unlinked(run.submit / LOCK, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _remove_links(run.submit)
        keep_pickles_private()
        earlier = jobs_of(run)
        if (run.submit / INTENT).exists():
            write_json(_jobs_file(run), earlier)  # with the jobs that only the note of a dead launcher names
        folder = str(options["additional_parameters"]["chdir"])
        note = {"id": "", "kind": kind, "submitted": attempts.now(), "tasks": len(tasks), "folder": folder}
        write_json(run.submit / INTENT, note)  # in case this process dies before it writes the job's id
        job_id = _sbatch(cluster, run, tasks, options)
        _remove_links(run.submit)
        write_json(_jobs_file(run), [*earlier, note | {"id": job_id}])
        (run.submit / INTENT).unlink()
        return job_id


def _sbatch(
    cluster: ClusterFile, run: RunDirectory, tasks: list[RankTask] | list[CommandTask], options: dict[str, Any]
) -> str:
    """Pass a job to SLURM and return its id; a rejected one leaves no files."""
    import submitit

    before = _temporary(run)
    executor = submitit.AutoExecutor(
        run.submit.resolve(), cluster="slurm", slurm_max_num_timeout=cluster.requeues, slurm_python=_python(cluster)
    )
    executor.update_parameters(**{f"slurm_{name}": value for name, value in options.items()})
    executor._executor.parameters["wckey"] = options["wckey"]  # None, which update_parameters ignores
    try:
        with redirect_stderr(StringIO()):  # submitit also prints the error
            if len(tasks) == 1:
                return str(executor.submit(tasks[0]).job_id)
            with executor.batch():
                jobs = [executor.submit(task) for task in tasks]
            return str(jobs[0].job_id.partition("_")[0])
    except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError) as error:
        for leftover in {*_temporary(run), run.submit / INTENT} - before:
            leftover.unlink(missing_ok=True)
        raise UserError(rejection(cluster, str(error))) from None


def _temporary(run: RunDirectory) -> set[Path]:
    """Files of submitit that have no job's id yet; everything else in RUN/submit may be of jobs that run now."""
    return {path for path in run.submit.iterdir() if TEMPORARY.fullmatch(path.name)}


def _remove_links(folder: Path) -> None:
    """Remove links, e.g. those of submitit to its scripts: nothing that is written later must follow one."""
    for path in folder.iterdir():
        if path.is_symlink():
            path.unlink()


def warn_if_stuck(job_id: str) -> None:
    """Warn when a job that was just submitted waits for something that will never happen."""
    deadline = time.monotonic() + SECONDS_FOR_A_REASON
    with suppress(QueueError):  # the job is submitted; a busy controller gives no reason
        while (job := queue.state(job_id)).state == "PENDING" and time.monotonic() < deadline:
            if job.reason in STUCK:
                print(f"warning: job {job_id} will not start ({job.reason}): {STUCK[job.reason]}", file=sys.stderr)
                return
            time.sleep(0.3)


def _jobs_file(run: RunDirectory) -> Path:
    return run.submit / "jobs.json"


def jobs_of(run: RunDirectory) -> list[dict[str, Any]]:
    """Return the submitted jobs of a run, oldest first: `id`, `kind`, `submitted`, `tasks`, `folder`."""
    jobs: list[dict[str, Any]] = _noted(_jobs_file(run), [NOTE | {"id": NUMBER}]) if _jobs_file(run).exists() else []
    if (run.submit / INTENT).exists():  # a launcher died while it submitted a job
        note = _noted(run.submit / INTENT, NOTE)
        noted = {job["id"] for job in jobs}
        names = (path.name.removesuffix("_submission.sh") for path in run.submit.glob("*_submission.sh"))
        ids = {name for name in names if NUMBER.fullmatch(name)}
        jobs += [note | {"id": job_id} for job_id in sorted(ids - noted, key=int)]
    return jobs


def _noted(path: Path, shape: Any) -> Any:
    """Return the content of a JSON file in RUN/submit."""
    return read_json(path, shape, "check squeue for running jobs, then remove the file")


def state_of(job: dict[str, Any]) -> JobState:
    """Return the state of one of these jobs in SLURM."""
    return queue.state(job["id"], job["folder"])


class SlurmJob(Job):
    """A job in SLURM."""

    def state(self) -> JobState:
        """Return its state in SLURM."""
        return state_of(self.note)

    def signal(self, name: str) -> None:
        """Send a signal to its ranks."""
        queue.signal_job(self.id, name)

    def cancel(self) -> None:
        """End it with SIGTERM and, after the cluster's KillWait, SIGKILL."""
        queue.cancel(self.id)


def active(run: RunDirectory, kind: str | None = None) -> list[tuple[dict[str, Any], JobState]]:
    """Return the jobs of a run that are queued or running, oldest first."""
    states = [(job, state_of(job)) for job in jobs_of(run) if kind in (None, job["kind"])]
    return [(job, state) for job, state in states if state.active]


def follow(run: RunDirectory, job_id: str, show_log: bool = True) -> int:
    """Print the state of a job until it ends, with the log of its run or else its output; return its exit code.

    Ctrl-C only stops following: the job continues.
    """
    printed, log = "", _Tail(run)
    try:
        while True:
            try:
                job = queue.state(job_id)
            except QueueError as error:  # a restarting controller answers again soon
                print(f"{error}; trying again", file=sys.stderr, flush=True)
                time.sleep(5 * FOLLOW_SECONDS)
                continue
            text = f"job {job_id}: {job.state.lower()}"
            text += f" on {job.nodes}" * bool(job.nodes) + f" ({job.reason})" * bool(job.reason)
            if show_log:
                log.show()
            if text != printed:
                print(text, file=sys.stderr, flush=True)
                printed = text
            if not job.active:
                if not show_log:
                    sys.stdout.write(_printed(run, job_id))
                return job.result
            time.sleep(FOLLOW_SECONDS)
    except KeyboardInterrupt:
        print_error(f"stopped following; job {job_id} continues: wellread status, logs or cancel {run.path}")
        return 130


def _printed(run: RunDirectory, job_id: str) -> str:
    """Return the output of a job with one task, without submitit's own lines."""
    path = run.submit / f"{job_id}_0_log.out"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []
    return "".join(line for line in lines if not line.startswith("submitit "))


class _Tail:
    """Prints new lines in the log of rank 0 of each attempt."""

    def __init__(self, run: RunDirectory) -> None:
        self._log = run.log
        self._read = {path: path.stat().st_size for path in self._files()}

    def _files(self) -> list[Path]:
        return sorted(self._log.glob("attempt-*-rank-0.log"))

    def show(self) -> None:
        for path in self._files():
            with open(path, "rb") as file:
                file.seek(self._read.get(path, 0))
                text = file.read()
            complete = text[: text.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(complete)
            lines = complete.decode(errors="replace").splitlines(keepends=True)
            # As in a local run, the start of a save is only in the log.
            sys.stdout.write("".join(line for line in lines if not line.startswith("saving step-")))
            sys.stdout.flush()
