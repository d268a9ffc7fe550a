"""SLURM: jobs handed over through submitit, and followed until their end."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from launch import attempts
from launch.backends.jobs import Job, JobState
from launch.backends.slurm import queue
from launch.backends.slurm.task import CommandTask, RankTask
from launch.cluster import GPUS, ClusterFile, minutes
from wellread.errors import UserError, print_error
from wellread.files import write_json
from wellread.run import RunDirectory

FOLLOW_SECONDS = 2.0
SECONDS_FOR_A_REASON = 2.0
"""How long SLURM's scheduler may take to say why a job waits."""
STUCK = {
    "PartitionNodeLimit": "the partition has fewer nodes than were asked for: cancel it, and lower --nodes",
    "PartitionTimeLimit": "the partition's time limit is lower: cancel it, and lower --time",
    "BadConstraints": "no node satisfies what the cluster's file asks for: cancel it, and mend the file",
    "AssocMaxNodePerJobLimit": "your account may not have that many nodes: cancel it, and lower --nodes",
    "QOSMaxNodePerJobLimit": "the QOS allows fewer nodes: cancel it, and lower --nodes",
    "QOSMaxWallDurationPerJobLimit": "the QOS allows less time: cancel it, and lower --time",
}
"""Reasons of SLURM for which no waiting helps, and what does."""
INTENT = "intent.json"
"""In RUN/submit while a job is handed over: what will be noted of it."""


def check(run: RunDirectory) -> None:
    """Refuse what cannot be handed to SLURM safely.

    Raises
    ------
    UserError
        When the run's path holds what SLURM or a shell script's comment lines would read as something else.
    """
    path = str(run.path.resolve())
    if re.search(r"[\x00-\x1f\x7f%\\]", path):
        raise UserError(
            f"--out {path!r}: SLURM reads % and \\ in the names of its log files, and a line ends at control "
            "characters; choose a path without them"
        )


def parameters(
    cluster: ClusterFile, *, name: str, nodes: int, ranks_per_node: int, code: Path, after: str | None = None
) -> dict[str, Any]:
    """What a job asks of SLURM, in submitit's words.

    Parameters
    ----------
    code : Path
        Folder that the tasks start in, so that their code is imported from it.
    after : str
        Id of a job that must end well before this one starts.
    """
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
        "mem": f"{round(cluster.memory * 1024)}M" if cluster.memory else None,
        "cpus_per_task": cluster.cpus_per_rank,
        "exclusive": cluster.exclusive or None,
        "setup": list(cluster.setup) or None,
        "dependency": f"afterok:{after}" if after else None,
        # A rank that fails takes the others with it, whatever they wait for.
        "srun_args": ["--kill-on-bad-exit=1", *cluster.srun],
    }
    additional: dict[str, Any] = {"chdir": str(code), "requeue": True}
    if after:
        additional["kill-on-invalid-dep"] = "yes"
    return {k: v for k, v in options.items() if v is not None} | {"additional_parameters": additional | cluster.sbatch}


def _gres(cluster: ClusterFile, ranks_per_node: int) -> str | None:
    """The cluster's resources with as many GPUs as there are ranks on a node."""
    if not cluster.gpus:
        return cluster.gres
    return GPUS.sub(lambda match: f"gpu{match['type'] or ''}:{ranks_per_node}", cluster.gres or "")


def sbatch_text(cluster: ClusterFile, run: RunDirectory, options: dict[str, Any]) -> str:
    """The file that would be handed to sbatch."""
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
    """Hand a job over, an array where there are several tasks; note its id in RUN/submit/jobs.json and return it.

    Raises
    ------
    UserError
        When SLURM refuses it; its own words, in one line.
    """
    import submitit

    if not queue.available():
        raise UserError("--cluster slurm: no sbatch here; log in to a node of the cluster, or choose --cluster local")
    run.submit.mkdir(exist_ok=True)
    earlier, before = jobs_of(run), set(run.submit.iterdir())
    note = {"id": "", "kind": kind, "submitted": attempts.now(), "tasks": len(tasks)}
    note["folder"] = str(options["additional_parameters"]["chdir"])
    write_json(run.submit / INTENT, note)  # should this process die before it has noted the job
    executor = submitit.AutoExecutor(
        run.submit.resolve(), cluster="slurm", slurm_max_num_timeout=cluster.requeues, slurm_python=_python(cluster)
    )
    executor.update_parameters(**{f"slurm_{name}": value for name, value in options.items()})
    try:
        with redirect_stderr(StringIO()):  # submitit repeats there what the error says
            if len(tasks) == 1:
                job_id = executor.submit(tasks[0]).job_id
            else:
                with executor.batch():
                    jobs = [executor.submit(task) for task in tasks]
                job_id = jobs[0].job_id.partition("_")[0]
    except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError) as error:
        for leftover in {*run.submit.iterdir(), run.submit / INTENT} - before | {run.submit / INTENT}:
            leftover.unlink(missing_ok=True)
        raise UserError(f"SLURM refuses the job: {_reason(str(error))}; see --help and {cluster.name}.yaml") from None
    job_id = str(job_id)
    write_json(_jobs_file(run), [*earlier, note | {"id": job_id}])
    (run.submit / INTENT).unlink()
    return job_id


def warn_if_stuck(job_id: str) -> None:
    """Say so when a job that was just handed over waits for what will not come by itself."""
    deadline = time.monotonic() + SECONDS_FOR_A_REASON
    while (job := queue.state(job_id)).state == "PENDING" and time.monotonic() < deadline:
        if job.reason in STUCK:
            print(f"warning: job {job_id} will not start: {job.reason}, {STUCK[job.reason]}", file=sys.stderr)
            return
        time.sleep(0.3)


def _reason(text: str) -> str:
    """The line in which sbatch says why."""
    lines = [line.partition("error:")[2].strip() for line in text.splitlines() if "error:" in line]
    return "; ".join(dict.fromkeys(lines)) or " ".join(text.split())


def _jobs_file(run: RunDirectory) -> Path:
    return run.submit / "jobs.json"


def jobs_of(run: RunDirectory) -> list[dict[str, Any]]:
    """Jobs that were handed over for a run, oldest first: `id`, `kind`, `submitted`, `tasks`, `folder`."""
    jobs: list[dict[str, Any]] = _noted(_jobs_file(run)) if _jobs_file(run).exists() else []
    if (run.submit / INTENT).exists():  # a launcher died while it handed a job over
        note = _noted(run.submit / INTENT)
        noted = {job["id"] for job in jobs}
        ids = {path.name.partition("_")[0] for path in run.submit.glob("[0-9]*_submission.sh")}
        jobs += [note | {"id": job_id} for job_id in sorted(ids - noted, key=int)]
    return jobs


def _noted(path: Path) -> Any:
    """What a JSON file of RUN/submit holds."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); look at squeue for what runs, then remove the file") from None


def state_of(job: dict[str, Any]) -> JobState:
    """What SLURM knows of one of these."""
    return queue.state(job["id"], job["folder"])


class SlurmJob(Job):
    """A job of SLURM."""

    def state(self) -> JobState:
        """What SLURM knows of it."""
        return state_of(self.note)

    def signal(self, name: str) -> None:
        """Send a signal to its ranks."""
        queue.signal_job(self.id, name)

    def cancel(self) -> None:
        """SIGTERM, and after the cluster's KillWait SIGKILL."""
        queue.cancel(self.id)


def active(run: RunDirectory, kind: str | None = None) -> list[tuple[dict[str, Any], JobState]]:
    """Jobs of a run that are queued or running, oldest first."""
    states = [(job, state_of(job)) for job in jobs_of(run) if kind in (None, job["kind"])]
    return [(job, state) for job, state in states if state.active]


def follow(run: RunDirectory, job_id: str, show_log: bool = True) -> int:
    """Show a job's states until it ends, and its run's log or else what it has printed; return its exit code.

    Ctrl-C stops the following alone: the job goes on.
    """
    printed, log = "", _Tail(run)
    try:
        while True:
            try:
                job = queue.state(job_id)
            except RuntimeError as error:  # a controller that restarts is back in a moment
                print(f"{error}; asking again", file=sys.stderr, flush=True)
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
        print_error(f"stopped following; job {job_id} goes on: make status, logs or cancel RUN={run.path}")
        return 130


def _printed(run: RunDirectory, job_id: str) -> str:
    """What a job of one task has printed, without submitit's own lines."""
    path = run.submit / f"{job_id}_0_log.out"
    lines = path.read_text(errors="replace").splitlines(keepends=True) if path.exists() else []
    return "".join(line for line in lines if not line.startswith("submitit "))


class _Tail:
    """Prints what rank 0 of each attempt adds to its log."""

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
            # That a save begins is for the log alone, as in a local run.
            sys.stdout.write("".join(line for line in lines if not line.startswith("saving step-")))
            sys.stdout.flush()
