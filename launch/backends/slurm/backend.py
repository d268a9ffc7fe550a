"""The backend for SLURM: runs and evaluations are submitted as jobs, which continue without launch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from launch import ladder
from launch.backends.base import Backend, Evaluation, Settle, Training, summary
from launch.backends.jobs import Job, JobState
from launch.backends.slurm import jobs, queue
from launch.backends.slurm.task import CommandTask, RankTask
from launch.cluster import minutes
from wellread import provenance
from wellread.checkpoint import list_checkpoints
from wellread.errors import UserError
from wellread.planning.machine import Machine
from wellread.planning.plan import Plan
from wellread.run import RunDirectory

if TYPE_CHECKING:
    from launch.checks.check import Check
    from launch.checks.node import Request


@dataclass(frozen=True)
class Slurm(Backend):
    """Submits jobs to SLURM."""

    def __post_init__(self) -> None:
        file = self.file
        if file.signal_delay >= minutes(file.time) * 60:
            where = f"--cluster {file.path}: " * bool(file.path)
            raise UserError(
                f"{where}time {file.time!r}: not longer than signal_delay ({file.signal_delay} s); use a longer --time"
            )

    def probe(self, nodes: int, ranks_per_node: int | Literal["auto"]) -> Machine:
        """Return the machine described by the cluster file, without a query to SLURM."""
        file = self.file
        device, gpus = ("cuda" if file.gpus else "cpu") if file.device == "auto" else file.device, file.gpus_of(nodes)
        return self._described(
            nodes, ranks_per_node, device, gpus or 1, gpus if device == "cuda" else 0, f"gres: {file.gres}"
        )

    def sizes(self) -> tuple[float | None, float | None]:
        """Return the sizes in the cluster file, else the node memory that SLURM reports."""
        memory = self.file.memory
        return self.file.gpu_mem, queue.node_memory(self.file.partition) if memory is None else memory

    def lacks_gpus(self) -> str:
        """Return a reason when jobs request no GPUs."""
        return "" if self.file.gpus else "the cluster file requests no GPU (gres: gpu:8)"

    def cores(self, ranks_per_node: int) -> int | None:
        """Return the value in the cluster file; nodes may have more or fewer cores than this machine."""
        return self.file.cpus_per_rank

    def check(self, run: RunDirectory) -> None:
        """Refuse a path that SLURM would misinterpret."""
        jobs.check(run)

    def train(self, training: Training, settle: Settle, refuse_changed: Callable[[], None]) -> int:
        """Submit the run and the evaluation after it, unless they are already queued or running."""
        run = training.run
        queued = jobs.active(run, training.program)  # before taking the run's lock, which a running job holds
        if queued:
            refuse_changed()
            note, state = queued[-1]
            last: str | None = self._evaluated(training, note, state)
            return self._followed(training, note["id"], last, settle, refuse_changed)
        with run.lock():
            if training.fall_back:
                _note_jobs(run)
            plan = settle()
            if isinstance(plan, int):
                return plan
            last = job_id = self._submit(training, plan) if plan else None
            evaluates = training.then and not jobs.active(run, "eval")
            if evaluates and (job_id or not _is_reported(run)):
                last = self._submit_then(training, job_id)
        return self._followed(training, job_id, last, settle, refuse_changed)

    def _evaluated(self, training: Training, note: dict[str, Any], state: JobState) -> str:
        """Submit the evaluation after a queued run if it is missing; return the id of the last job."""
        run, job_id = training.run, str(note["id"])
        evaluations = jobs.active(run, "eval")
        evaluates = bool(training.then) and not evaluations
        end = "" if evaluates else "; nothing to submit"
        print(f"{run.path}: job {job_id} is already {state.state.lower()}{end}", flush=True)
        if evaluates:
            return self._submit_then(replace(training, code=Path(note["folder"])), job_id)
        return str(evaluations[-1][0]["id"]) if evaluations else job_id

    def _followed(
        self,
        training: Training,
        job_id: str | None,
        last: str | None,
        settle: Settle,
        refuse_changed: Callable[[], None],
    ) -> int:
        """With --wait, follow the run's job and the evaluation after it, and return the exit code; else return 0."""
        run = training.run
        if not training.wait:
            return 0
        code = jobs.follow(run, job_id) if job_id else 0
        if code and training.fall_back and _note_jobs(run):
            return self.train(training, settle, refuse_changed)
        return jobs.follow(run, last, show_log=False) if last and last != job_id and code == 0 else code

    def _submit(self, training: Training, plan: Plan) -> str:
        parameters = self._job_parameters(training, plan)
        task = RankTask(
            run=str(training.run.path.resolve()),
            arguments=tuple(training.arguments),
            variables=self.environment(plan, training.code),
            requeues=self.file.requeues,
            limit=60 * int(parameters["time"]),
            ladder=training.fall_back,
        )
        job_id = jobs.submit(self.file, training.run, [task], parameters, training.program)
        print(f"submitted {training.run.path} as job {job_id}: {summary(plan)}", flush=True)
        jobs.warn_if_stuck(job_id)
        return job_id

    def _job_parameters(self, training: Training, plan: Plan) -> dict[str, Any]:
        """Return the SLURM parameters of the run's job."""
        return jobs.parameters(
            self.file,
            name=training.run.name,
            nodes=plan.machine.nodes,
            ranks_per_node=plan.machine.ranks_per_node,
            code=training.code,
            whole_memory=plan.machine.host_mem is not None,  # the plan counts on it
        )

    def _submit_then(self, training: Training, after: str | None) -> str:
        """Submit the command after a run, to start when job `after` has succeeded; return its job id."""
        run = training.run
        parameters = self._command_parameters(f"{run.name} eval", after)
        parameters["additional_parameters"]["chdir"] = str(training.code)
        job_id = jobs.submit(self.file, run, [self._command(run, training.then)], parameters, "eval")
        print(f"submitted its evaluation as job {job_id}" + f", after job {after}" * bool(after), flush=True)
        return job_id

    def evaluate(self, evaluation: Evaluation) -> int:
        """Submit an evaluation: its parts as a job array, and the last step after them."""
        run = evaluation.run
        jobs.check(run)
        if running := jobs.active(run, "eval"):
            job = running[-1][0]["id"]
            raise UserError(f"{run.path}: job {job} already evaluates it; wait for it, or wellread cancel {run.path}")
        first = None
        if parts := evaluation.parts:
            parameters = self._command_parameters(f"{run.name} eval parts")
            if len(parts) > 1:
                parameters["array_parallelism"] = evaluation.parallelism or len(parts)
            first = jobs.submit(self.file, run, [self._command(run, part) for part in parts], parameters, "eval")
            print(f"submitted {len(parts)} evaluations as job {first}", flush=True)
        parameters = self._command_parameters(f"{run.name} eval", first)
        job_id = jobs.submit(self.file, run, [self._command(run, evaluation.arguments)], parameters, "eval")
        print(f"submitted eval {evaluation.name} as job {job_id}" + f", after job {first}" * bool(first), flush=True)
        if not evaluation.wait:
            return 0
        code = jobs.follow(run, first, show_log=False) if first else 0
        return code or jobs.follow(run, job_id, show_log=False)

    def _command_parameters(self, name: str, after: str | None = None) -> dict[str, Any]:
        """Return the SLURM parameters of a job that runs one command."""
        return jobs.parameters(self.file, name=name, nodes=1, ranks_per_node=1, code=provenance.ROOT, after=after)

    def _command(self, run: RunDirectory, arguments: tuple[str, ...]) -> CommandTask:
        plan = Plan.open(run.plan_file)
        return CommandTask(arguments, self.environment(replace(plan, machine=replace(plan.machine, ranks_per_node=1))))

    @staticmethod
    def jobs_of(run: RunDirectory) -> list[Job]:
        """Return the jobs listed in RUN/submit."""
        return [jobs.SlurmJob(note) for note in jobs.jobs_of(run)]

    def plan_files(self, training: Training, plan: Plan) -> dict[str, str]:
        """Return the script for sbatch."""
        return {"sbatch": jobs.sbatch_text(self.file, training.run, self._job_parameters(training, plan))}

    def checks(self, request: Request, nodes: int | None, no_job: bool) -> Iterator[Check]:
        """Yield the checks of this machine, of the scheduler, and of each node of a small job."""
        from launch.backends.slurm import checks

        return checks.checks(self.file, request, nodes, no_job)


def _note_jobs(run: RunDirectory) -> bool:
    """Return whether the run's last job exceeded its memory according to SLURM; if so, write it into the manifest."""
    last = run.manifest()["attempts"][-1:] if run.manifest_file.exists() else []
    job_id = last[0].get("job") if last else None
    return bool(job_id and ladder.note_job(run, job_id, queue.state(job_id).state))


def _is_reported(run: RunDirectory) -> bool:
    """Return whether the report exists and is newer than all checkpoints."""
    report, checkpoints = run.report / "index.html", list_checkpoints(run.checkpoints)
    return report.exists() and all(report.stat().st_mtime > c.path.stat().st_mtime for c in checkpoints)
