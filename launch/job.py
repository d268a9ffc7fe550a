"""One launch: prepare the corpus, plan, start the ranks or hand them to SLURM, return their exit code."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launch import attempts, evaluation, hostfile, ladder, local, ops, sizes, slurm, slurm_queue, snapshot
from launch import cluster as clusters
from launch.cluster import ClusterFile
from launch.evaluation import Request
from launch.options import LaunchOptions, cluster_of
from launch.samples import Samples, samples_of
from launch.slurm_task import RankTask
from wellread import provenance
from wellread.checkpoint import list_checkpoints
from wellread.config import RunConfig, to_argv, to_dict
from wellread.corpus import summary as summaries
from wellread.corpus.read import Corpus
from wellread.errors import FAILURE, UserError
from wellread.files import write_json
from wellread.models import registry
from wellread.order import store
from wellread.order.build import Built, build, samples_before_corpus
from wellread.planning import deepspeed_file
from wellread.planning.choose import WORDS
from wellread.planning.plan import Cluster, Counts, Plan, make_plan, resolve
from wellread.run import RunDirectory
from wellread.units import GIB


@dataclass(frozen=True)
class Job:
    """A resolved request: what to run, and on what."""

    config: RunConfig
    samples: Samples
    file: ClusterFile
    cluster: Cluster
    options: LaunchOptions
    _orders: dict[Path, Built] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def resolve(cls, config: RunConfig, options: LaunchOptions) -> Job:
        """Look up everything that needs no heavy import.

        Raises
        ------
        UserError
            For an unknown model, data set, cluster or setting.
        """
        if Path(config.model).expanduser().is_dir():
            config = replace(config, model=str(Path(config.model).expanduser().resolve()))
        spec = registry.find(config.model)
        config = resolve(config, spec)
        file = cluster_of(config.cluster, options.time, options.partition)
        cluster = _sized(config, file, options)
        job = cls(config, samples_of(config, spec), file, cluster, options)
        if file.kind == "slurm":
            slurm.check(job.run)
        return job

    @property
    def run(self) -> RunDirectory:
        """The run directory, whether or not it is there."""
        return RunDirectory(Path(self.config.out or ""))

    @property
    def spec(self) -> registry.ModelSpec:
        """The model."""
        return self.samples.spec

    def corpus_directory(self) -> Path:
        """Where the corpus is compiled to."""
        return self.samples.directory

    def plan(self, corpus: Corpus | None) -> Plan:
        """Plan the run; without a compiled corpus, from the rows of the source."""
        counts = _counts(corpus, self.order(corpus).order.n) if corpus else self._estimate()
        own = deepspeed_file.read(self.config.ds_config) if self.config.ds_config else None
        begun = self.options.ladder == "on" and not self.options.force  # by force, it begins as asked
        failures = ladder.failures(self.run) if begun else ()
        made = make_plan(self.config, self.spec, self.cluster, counts, own, failures)
        return replace(made, forced=self.options.force)

    def order(self, corpus: Corpus) -> Built:
        """The order over `corpus`, built once: it may be long."""
        if corpus.path not in self._orders:
            self._orders[corpus.path] = build(self.config, corpus)
        return self._orders[corpus.path]

    def _estimate(self) -> Counts:
        rows = self.samples.estimate()
        sealed = round(rows * self.config.holdout)
        read = samples_before_corpus(self.config, rows - sealed)
        return Counts(samples=rows, trainable=rows - sealed, sealed=sealed, exact=False, pass_samples=read)

    def planned(self) -> Plan:
        """The plan as far as it is known without starting or downloading anything."""
        local = self.spec.fresh or self.spec.path is not None
        directory = self.corpus_directory() if local else None
        compiled = directory is not None and (directory / "corpus.json").is_file()
        plan = self.plan(Corpus.open(directory) if directory is not None and compiled else None)
        if self.file.kind == "local" and self.config.nvme_path and plan.strategy.endswith("-nvme"):
            ops.check_libaio(plan.strategy)
        return plan


def _sized(config: RunConfig, file: ClusterFile, options: LaunchOptions) -> Cluster:
    """The cluster with the sizes of its memory, as far as they are known."""
    gpu_mem, host_mem = sizes.of(file, options.gpu_mem, options.host_mem)
    if _imagined(file, options):
        ranks = 1 if config.ranks_per_node == "auto" else config.ranks_per_node
        cluster = Cluster(kind=file.kind, nodes=config.nodes, ranks_per_node=ranks, device="cuda")
    else:
        cluster = clusters.probe(config, file)
    nvme = file.nvme if options.nvme is None else options.nvme
    if file.kind == "local" and config.nvme_path:  # on other machines the ranks look
        deepspeed_file.check_nvme(config.nvme_path)
        nvme = nvme or shutil.disk_usage(config.nvme_path).free / GIB
    return replace(cluster, gpu_mem=gpu_mem, host_mem=host_mem, nvme=nvme)


def _imagined(file: ClusterFile, options: LaunchOptions) -> bool:
    """Whether a plan is asked for GPUs that are not here, or not asked of SLURM."""
    there = file.gpus if file.kind == "slurm" else clusters.count_gpus() if file.kind == "local" else 1
    return options.gpu_mem is not None and not there and file.device != "cuda"


def _refuse_unfit(plan: Plan) -> None:
    """The gate: refuse a strategy that was asked for and cannot fit."""
    if plan.needs and not plan.needs["fits"]:
        short = plan.needs["short"].items()
        missing = " and ".join(f"{size / GIB:,.1f} GiB {WORDS[place]}" for place, size in short)
        raise UserError(
            f"--strategy {plan.strategy}: does not fit, it is short of {missing}; leave it to auto, see launch plan, "
            "or start it all the same with --force"
        )


def _counts(corpus: Corpus, pass_samples: int) -> Counts:
    return Counts(
        samples=corpus.n,
        trainable=corpus.n_trainable,
        sealed=corpus.n - corpus.n_trainable,
        exact=True,
        pass_samples=pass_samples,
    )


def run(config: RunConfig, options: LaunchOptions) -> int:
    """Prepare, plan and train; return the job's exit code."""
    job = Job.resolve(config, options)
    planned = job.planned()  # what cannot be planned, or cannot fit, is refused before anything is written
    if _imagined(job.file, options):
        lacks = "the cluster's file asks for no GPU (gres: gpu:8)" if job.file.kind == "slurm" else "no GPU is here"
        raise UserError(f"--gpu_mem: {lacks}; launch plan tells what a run on such GPUs would need")
    if not config.nvme_path:
        if planned.strategy.endswith("-nvme"):
            raise UserError(f"--strategy {planned.strategy}: needs --nvme_path, a directory on each node's NVMe disk")
        job = replace(job, cluster=replace(job.cluster, nvme=None))  # its size alone is for launch plan
    if not options.force:
        _refuse_unfit(planned)
    _refuse_foreign(job.run)
    if options.strict:
        _refuse_dirty()
    if job.file.kind == "slurm":
        return _hand_over(job)
    with job.run.lock():
        plan = _settled(job)
        if isinstance(plan, int):
            return plan
        code = _start(job, plan) if plan else 0
    if code == 0 and options.then == "eval":
        return evaluation.run(Request(command="membership", run=job.run, cluster=clusters.load("local")))
    return code


def _settled(job: Job) -> Plan | int | None:
    """Compile the corpus and begin the run directory: the plan to start, an exit code, or None for a finished run."""
    code = _prepare(job)
    if code:
        return code
    corpus = Corpus.open(job.corpus_directory())
    if corpus.words > job.spec.vocab:  # compiled for another model with the same tokenizer
        raise UserError(
            f"--model {job.spec.name}: its tokenizer has {corpus.words:,} tokens but its embedding "
            f"{job.spec.vocab:,} rows; they do not belong together"
        )
    plan = job.plan(corpus)
    if _settle(job, corpus, plan):
        print(f"{job.run.path} is finished: step {plan.steps} of {plan.steps}; nothing to do", flush=True)
        return None
    write_json(job.run.plan_file, to_dict(plan))
    if job.options.snapshot == "on":
        for name in snapshot.take(job.run, Path(job.config.corpora)):
            print(f"not in the code snapshot, since untracked and large: {name}", file=sys.stderr)
    return plan


def _refuse_dirty() -> None:
    code = provenance.code(provenance.ROOT)
    if code["commit"] is None:
        raise UserError("--strict: the code is no git repository, so no commit can name it; run it from a clone")
    if code["dirty"]:
        raise UserError(f"--strict: the working tree differs from commit {code['commit'][:12]}; commit or stash first")


def _prepare(job: Job) -> int:
    directory = job.corpus_directory()
    if (directory / "corpus.json").is_file():
        if not job.run.manifest_file.exists():
            print(f"corpus {directory}: already compiled", flush=True)
            summaries.summary(Corpus.open(directory))
        return 0
    command = [sys.executable, "-m", job.config.program, "prepare", *to_argv(job.config)]
    return subprocess.run(command, check=False).returncode


def _settle(job: Job, corpus: Corpus, plan: Plan) -> bool:
    """Begin the run directory, or make sure that it belongs to this very run; True when the run is finished."""
    run, identity = job.run, _identity(job, corpus, plan)
    manifest: dict[str, Any] = run.manifest() if run.manifest_file.exists() else {"version": 1, "attempts": []}
    if any(run.checkpoints.glob("step-*")):
        _refuse_other(run, manifest["identity"], identity)
        if job.config.resume == "never":
            raise UserError(f"{run.path}: has begun, and --resume never was asked for; choose another --out")
        try:
            store.open_order(run)
        except UserError:  # lost or altered
            store.keep(run, job.order(corpus))
    else:  # without a checkpoint nothing was read: an attempt that failed early is in nobody's way
        store.keep(run, job.order(corpus))
        write_json(run.manifest_file, manifest | {"identity": identity})
    link = run.path / "corpus"
    if not link.is_dir() or (link.is_symlink() and link.resolve() != corpus.path):
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(corpus.path, run.path.resolve()))
    run.write_config(job.config)
    last = {checkpoint.step: checkpoint for checkpoint in list_checkpoints(run.checkpoints)}.get(plan.steps)
    return last is not None and last.damage() is None


def _refuse_foreign(run: RunDirectory) -> None:
    """Refuse a place that holds something else, before anything is written there."""
    if run.manifest_file.exists() or not run.path.exists():
        return
    if not run.path.is_dir():
        raise UserError(f"{run.path}: is a file; choose another --out")
    if unknown := [
        p.name
        for p in run.path.iterdir()
        if p.name not in ("lock", "corpus", "order.npy", "order.json") and p.name[0] != "."
    ]:
        raise UserError(f"{run.path}: holds {', '.join(sorted(unknown)[:3])} but no run; choose another --out")


def _identity(job: Job, corpus: Corpus, plan: Plan) -> dict[str, Any]:
    """What makes a run this run: a change of any of it is refused at resume."""
    config = job.config
    return (
        {
            "model": registry.fingerprint(job.spec, config.init),
            "corpus": corpus.hash,
            "order": job.order(corpus).order.identity(),
            "batch_size": plan.batch_size,
            "seq_len": plan.seq_len,
            "seed": config.seed,
            "steps": plan.steps,
            "dtype": plan.dtype,
            "optim": to_dict(config.optim),
        }
        | ({"lora": to_dict(config.lora)} if config.lora.rank else {})
        | ({"freeze": config.freeze} if config.freeze else {})
        | ({"pack": True} if config.pack else {})
    )


def _refuse_changed(job: Job) -> None:
    """Refuse settings that would make another run of the one that is queued or running."""
    if job.run.corpus.is_dir() and (job.corpus_directory() / "corpus.json").is_file():
        corpus = Corpus.open(job.corpus_directory())
        _refuse_other(job.run, job.run.manifest()["identity"], _identity(job, corpus, job.plan(corpus)))


def _refuse_other(run: RunDirectory, there: dict[str, Any], asked: dict[str, Any]) -> None:
    there, asked = _flat(there), _flat(asked)
    differences = [
        f"{key} is {_short(there.get(key))} there, {_short(asked.get(key))} asked for"
        for key in there | asked
        if there.get(key) != asked.get(key)
    ]
    if differences:
        raise UserError(f"{run.path}: holds another run ({'; '.join(differences)}); choose another --out")


def _flat(identity: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in identity.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _short(value: object) -> str:
    """A value, or the beginning of a hash."""
    text = str(value)
    return text if len(text) <= 40 else f"{text[:20]}…"


def _start(job: Job, plan: Plan) -> int:
    """Run the ranks from here; when their memory ran out, go on with the next strategy that fits."""
    while True:
        attempt, code = _attempt(job, plan)
        failure = ladder.note(job.run, plan, attempt) if code else None
        lower = ladder.next_plan(job.run, plan) if failure and job.options.ladder == "on" else None
        if lower is None:
            return code
        plan = lower


def _attempt(job: Job, plan: Plan) -> tuple[int, int]:
    """Run the ranks once, on this machine or on those of a hostfile; return the attempt's number and the exit code."""
    variables, where = environment(job, plan), job.file
    for op in ops.needed(plan):
        ops.ensure(op, variables)
    hosts = [host.name for host in clusters.hosts(where)[: plan.nodes]] if where.kind == "hostfile" else ["localhost"]
    attempt = attempts.begin(job.run, plan, {"hosts": hosts}, code_of(job))
    variables["WELLREAD_ATTEMPT"] = str(attempt)
    print(f"training {job.run.path}: {summary(plan)}", flush=True)
    code = FAILURE
    try:
        if where.kind == "hostfile":
            run, ranks = job.run.path, plan.ranks_per_node
            code = hostfile.start(where, hosts, run, arguments(job), ranks, variables, code_of(job))
        else:
            with ladder.watched(job.run, attempt):
                code = local.start(arguments(job), plan.ranks_per_node, variables, code_of(job))
    except KeyboardInterrupt:  # before the backend listens: nothing runs yet
        code = 128 + signal.SIGINT
    finally:
        attempts.end(job.run, attempt, code)
    if code:
        if code > 128 and code - 128 not in local.STOP_SIGNALS:
            for rank in attempts.lost_ranks(job.run, attempt, plan.ranks):  # which the backend has named
                attempts.note_signal(job.run, attempt, rank, code - 128)
        else:
            attempts.show_first_error(job.run, attempt)
    return attempt, code


def arguments(job: Job) -> list[str]:
    """What Python runs as each rank; the path is absolute, for the ranks start in the folder of the code."""
    return ["-m", job.config.program, "train", str(job.run.path.resolve())]


def code_of(job: Job) -> Path:
    """Folder whose code the ranks run."""
    return (job.run.code if job.options.snapshot == "on" else provenance.ROOT).resolve()


def environment(job: Job, plan: Plan) -> dict[str, str]:
    """Variables of every rank."""
    return clusters.environment(plan, job.file) | {provenance.CODE_ROOT: str(code_of(job))}


def _hand_over(job: Job) -> int:
    """Submit the run to SLURM, unless it is there already."""
    run = job.run
    queued = slurm.active(run, job.config.program)  # asked before the run's lock, which a running job holds
    if queued:
        _refuse_changed(job)
        last = job_id = queued[-1][0]["id"]
        print(f"{run.path}: job {job_id} is {queued[-1][1].state.lower()} already; nothing to submit", flush=True)
        last = next((note["id"] for note, _ in reversed(slurm.active(run, "eval"))), job_id)
        return _followed(job, job_id, last)
    with run.lock():
        if job.options.ladder == "on":
            _note_jobs(run)
        plan = _settled(job)
        if isinstance(plan, int):
            return plan
        last = job_id = _submit(job, plan) if plan else None
        wanted = job.options.then == "eval" and not slurm.active(run, "eval")
        if wanted and (job_id or not evaluation.is_done(run)):
            last = evaluation.after_run(run, job.file, job_id, str(code_of(job)))
            print(f"submitted its evaluation as job {last}" + f", after job {job_id}" * bool(job_id), flush=True)
    return _followed(job, job_id, last)


def _followed(job: Job, job_id: str | None, last: str | None) -> int:
    """With --wait, the exit code of the run's job, or of the evaluation after it; else 0."""
    run = job.run
    if not job.options.wait:
        return 0
    code = slurm.follow(run, job_id) if job_id else 0
    if code and job.options.ladder == "on" and _note_jobs(run):
        return _hand_over(job)
    return slurm.follow(run, last, show_log=False) if last and last != job_id and code == 0 else code


def _note_jobs(run: RunDirectory) -> bool:
    """Whether SLURM ended the run's last job for want of memory, which is then noted."""
    last = run.manifest()["attempts"][-1:] if run.manifest_file.exists() else []
    job_id = last[0].get("job") if last else None
    return bool(job_id and ladder.note_job(run, job_id, slurm_queue.state(job_id).state))


def _submit(job: Job, plan: Plan) -> str:
    wanted = wanted_of_slurm(job, plan)
    job_id = slurm.submit(job.file, job.run, [rank_task(job, plan, wanted)], wanted, job.config.program)
    print(f"submitted {job.run.path} as job {job_id}: {summary(plan)}", flush=True)
    slurm.warn_if_stuck(job_id)
    return job_id


def wanted_of_slurm(job: Job, plan: Plan) -> dict[str, Any]:
    """What the run's job asks of SLURM."""
    name, code = job.run.name, code_of(job)
    return slurm.parameters(job.file, name=name, nodes=plan.nodes, ranks_per_node=plan.ranks_per_node, code=code)


def rank_task(job: Job, plan: Plan, wanted: dict[str, Any]) -> RankTask:
    """What each task of the run's job does."""
    return RankTask(
        run=str(job.run.path.resolve()),
        arguments=tuple(arguments(job)),
        variables=environment(job, plan),
        requeues=job.file.requeues,
        limit=60 * int(wanted["time"]),
        ladder=job.options.ladder == "on",
    )


def summary(plan: Plan) -> str:
    """One line about a plan."""
    return (
        f"{plan.steps} steps of {plan.batch_size} samples on {plan.ranks} {plan.device} rank{'s' * (plan.ranks > 1)}, "
        f"{plan.strategy}, {plan.dtype}"
    )
