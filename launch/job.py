"""One launch: resolve the settings, plan the run, and let the cluster's backend train it."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from launch import children, identity, ladder, snapshot, state
from launch.backends import base as backends
from launch.backends.base import Backend, Training
from launch.evaluation import AFTER_A_RUN, Request
from launch.options import LaunchOptions, cluster_of
from wellread import provenance
from wellread.config import ClusterConfig, RunConfig, packages
from wellread.corpus import summary as summaries
from wellread.corpus.read import Corpus
from wellread.data import canaries, influence, reading, sample_metrics
from wellread.errors import UserError
from wellread.files import with_checksum, write_json
from wellread.models import registry
from wellread.models.spec import ModelSpec
from wellread.order.build import Built, build, samples_before_corpus
from wellread.order.inserted import check
from wellread.planning import deepspeed_file
from wellread.planning.choose import WORDS
from wellread.planning.machine import Machine
from wellread.planning.plan import Counts, Plan
from wellread.planning.planner import make_plan
from wellread.recipes.base import Samples
from wellread.recipes.registry import RESOLVED, handed_over, resolve, samples_of
from wellread.run import RunDirectory
from wellread.units import GIB, plural


@dataclass(frozen=True)
class Job:
    """A resolved launch: what to run and on which machines."""

    config: RunConfig
    samples: Samples
    backend: Backend
    machine: Machine
    options: LaunchOptions
    _orders: dict[Path, Built] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def resolve(cls, config: RunConfig, options: LaunchOptions) -> Job:
        """Resolve the model, the data set and the cluster, without importing torch.

        Raises
        ------
        UserError
            For an unknown model, data set, cluster or setting.
        """
        if Path(config.model.name).expanduser().is_dir():
            config = config.replace(model=str(Path(config.model.name).expanduser().resolve()))
        spec = registry.find(config.model.name)
        config = resolve(config, spec)
        backend = backends.of(cluster_of(config.cluster.name, options.time, options.partition))
        machine = _sized(config.cluster, backend, options)
        job = cls(config, samples_of(config, spec), backend, machine, options)
        backend.check(job.run)
        return job

    @property
    def run(self) -> RunDirectory:
        """The run directory; it may not exist yet."""
        return RunDirectory(Path(self.config.save.out or ""))

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return self.samples.spec

    @property
    def training(self) -> Training:
        """The training that the backend starts."""
        # Only the path of the snapshot: it is created later.
        code = self.run.path.resolve() / self.run.code.name if self.options.snapshot == "on" else provenance.ROOT
        then = Request(command=AFTER_A_RUN, run=self.run, cluster=self.backend.file)
        return Training(
            run=self.run,
            program=self.config.program,
            code=code,
            fall_back=self.options.ladder == "on",
            wait=self.options.wait,
            then=then.arguments() if self.options.then == "eval" else (),
        )

    def corpus_directory(self) -> Path:
        """Return the directory of the compiled corpus."""
        return self._corpus_of_run() or self.samples.directory

    def _corpus_of_run(self) -> Path | None:
        """Return the corpus of a started run if an older version compiled it from settings that mean the same."""
        if not (self.run.corpus / "corpus.json").is_file() or not any(self.run.checkpoints.glob("step-*")):
            return None
        corpus = Corpus.open(self.run.corpus.resolve())
        saved, settings = corpus.meta["settings"], json.loads(json.dumps(self.samples.settings))
        older = saved.get("version", 0) <= settings["version"] and saved != settings
        return corpus.path if older and same_but_version(saved, settings) else None

    def plan(self, corpus: Corpus | None) -> Plan:
        """Plan the run; without a compiled corpus, estimate its size from the rows of the source."""
        counts = _counts(corpus, self.order(corpus).pass_samples) if corpus else self._estimate()
        self._check_ranks()
        ds_config = deepspeed_file.read(self.config.cluster.ds_config) if self.config.cluster.ds_config else None
        falls_back = self.options.ladder == "on" and not self.options.force  # --force starts the requested strategy
        failures = ladder.failures(self.run) if falls_back else ()
        plan = make_plan(self.config, self.spec, self.machine, counts, ds_config, failures)
        if corpus is None and (registered := canaries.planned(self.config)):  # otherwise the order was checked
            check(registered, steps=plan.steps, batch_size=plan.batch_size)
        return replace(plan, forced=self.options.force, warmup_steps=self._warmup_steps(plan))

    def _warmup_steps(self, plan: Plan) -> int:
        """Return those of `plan`; a run that has begun keeps its own, which older versions rounded differently."""
        if not self._existing() or not self.run.plan_file.is_file():
            return plan.warmup_steps
        try:
            older = Plan.open(self.run.plan_file)
        except UserError:  # damaged: it is written again
            return plan.warmup_steps
        return older.warmup_steps if older.steps == plan.steps else plan.warmup_steps

    def _check_ranks(self) -> None:
        """Refuse ranks that cannot share the batches of a run that has begun: its batch size never changes."""
        if not (existing := self._existing()):
            return
        batch_size, ranks = existing["batch_size"], self.machine.ranks
        requested = self.config.schedule.batch_size or batch_size
        if requested != batch_size and requested % ranks:  # the planner would suggest other sizes that are refused, too
            raise UserError(
                f"--batch_size {requested}: {self.run.path} reads batches of {batch_size} samples, which never "
                f"changes; give --batch_size {batch_size}, or choose another --out"
            )
        if batch_size % ranks and self.config.schedule.batch_size == batch_size:
            fitting = [str(n) for n in range(1, batch_size + 1) if batch_size % n == 0 and n <= 2 * ranks]
            raise UserError(
                f"{self.run.path}: reads batches of {batch_size} samples, which {ranks} ranks cannot share equally; "
                f"choose {' or '.join(fitting)} rank{'s' * (fitting != ['1'])}"
            )

    def order(self, corpus: Corpus) -> Built:
        """Return the order over `corpus`, built once, since building can take long."""
        if corpus.path not in self._orders:
            self._orders[corpus.path] = build(self.config.schedule, corpus, self._existing().get("order"))
        return self._orders[corpus.path]

    def _existing(self) -> dict[str, Any]:
        """Return the identity of a run that has begun, which has a checkpoint; empty for a new run."""
        if not any(self.run.checkpoints.glob("step-*")) or not self.run.manifest_file.is_file():
            return {}
        existing: dict[str, Any] = self.run.manifest()["identity"]
        return existing

    def _estimate(self) -> Counts:
        rows = self.samples.estimate()
        sealed = round(rows * self.config.data.holdout)
        read = samples_before_corpus(self.config.schedule, rows - sealed)
        return Counts(samples=rows, trainable=rows - sealed, sealed=sealed, exact=False, pass_samples=read)

    def planned(self) -> Plan:
        """Return the plan as far as possible without starting or downloading anything."""
        local = self.spec.fresh or self.spec.path is not None
        directory = self.corpus_directory() if local else None
        compiled = directory is not None and (directory / "corpus.json").is_file()
        plan = self.plan(Corpus.open(directory) if directory is not None and compiled else None)
        if self.config.cluster.nvme_path and plan.rung.on_nvme:
            self.backend.check_nvme(plan.strategy)
        return plan

    def settle(self) -> Plan | int | None:
        """Compile the corpus and create the run directory.

        Returns
        -------
        Plan, int or None
            The plan; an exit code when preparing failed; None when the run is finished.
        """
        state.refuse_queued(self.run)
        older = self._corpus_of_run()
        code = 0 if older else _prepare(self)
        if code:
            return code
        corpus = Corpus.open(self.corpus_directory())
        if older and self.config.data.metrics and not corpus.metrics:
            print(
                f"--metrics: {corpus.path} was compiled by an older version and gets no text metrics; "
                f"to measure what the run reads: wellread saturation {shlex.quote(str(self.run.path))} --metrics",
                file=sys.stderr,
            )
        if corpus.words > self.spec.vocab:  # the corpus was compiled for another model with the same tokenizer
            raise UserError(
                f"--model {self.spec.name}: the tokenizer has {corpus.words:,} tokens, but the embedding only "
                f"{self.spec.vocab:,} rows; use the tokenizer of this model"
            )
        plan = self.plan(corpus)
        if identity.begin(self.run, self.config, self._identity(corpus, plan), corpus.path, self.order(corpus)):
            print(f"{self.run.path} is finished: step {plan.steps} of {plan.steps}; nothing to do", flush=True)
            return None
        write_json(self.run.plan_file, with_checksum(plan.as_dict()))
        if registered := corpus.canaries:
            share = check(registered, steps=plan.steps, batch_size=plan.batch_size)
            print(
                f"canaries: {plural(int(registered.doses.sum()), 'reading')}, {share:.2%} of all, in place of other "
                "samples",
                flush=True,
            )
        if self.options.snapshot == "on":
            for name in snapshot.take(self.run, Path(self.config.data.corpora)):
                print(f"not in the code snapshot, because untracked and large: {name}", file=sys.stderr)
        return plan

    def refuse_changed(self) -> None:
        """Refuse settings that would change the identity of a queued or running run."""
        if self.run.corpus.is_dir() and (self.corpus_directory() / "corpus.json").is_file():
            corpus = Corpus.open(self.corpus_directory())
            identity.refuse_other(self.run, self._identity(corpus, self.plan(corpus)))

    def _identity(self, corpus: Corpus, plan: Plan) -> dict[str, Any]:
        """Return the identity of this run with a compiled corpus."""
        return identity.of(self.config, self.spec, corpus.hash, self.order(corpus).order, plan)


def same_but_version(older: dict[str, Any], newer: dict[str, Any]) -> bool:
    """Whether settings of a corpus of an older version mean what `newer` means.

    Older versions kept the byte-order marks of templates, and did not write what belongs to chat templates, or how the
    files of a data set are read.
    """
    if "chat" not in older:
        newer = {name: value for name, value in newer.items() if name != "chat"}
    sets = [
        {key: value for key, value in each.items() if key in before or key not in reading.KEYS}
        for each, before in zip_longest(newer["sets"], older.get("sets", ()), fillvalue=dict[str, Any]())
    ]
    return bool(_unmarked(_without_versions(older)) == _without_versions(newer) | {"sets": sets})


def _without_versions(settings: dict[str, Any]) -> dict[str, Any]:
    chat = {"chat": settings["chat"] | {"version": 0}} if "chat" in settings else {}
    return settings | {"version": 0, "rows": 0} | chat


def _unmarked(value: Any) -> Any:
    """The value with all its texts, without byte-order marks at their beginning."""
    if isinstance(value, dict):
        return {key: _unmarked(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_unmarked(each) for each in value]
    return value.removeprefix("\ufeff") if isinstance(value, str) else value


def _sized(config: ClusterConfig, backend: Backend, options: LaunchOptions) -> Machine:
    """Return the machine that the ranks run on, with the sizes of its memory as far as known."""
    gpu_mem, host_mem = backend.sizes()
    if _imagined(backend, options):
        ranks = 1 if config.ranks_per_node == "auto" else config.ranks_per_node
        machine = Machine(cluster=backend.file.kind, nodes=config.nodes, ranks_per_node=ranks, device="cuda")
    else:
        machine = backend.probe(config.nodes, config.ranks_per_node)
    free = backend.nvme(config.nvme_path) if config.nvme_path else None
    nvme = backend.file.nvme if options.nvme is None else options.nvme
    return replace(
        machine,
        gpu_mem=gpu_mem if options.gpu_mem is None else options.gpu_mem,
        host_mem=host_mem if options.host_mem is None else options.host_mem,
        nvme=nvme or free,
    )


def _imagined(backend: Backend, options: LaunchOptions) -> bool:
    """Return whether the plan is for GPUs that this machine does not have, or that no SLURM job requests."""
    return options.gpu_mem is not None and backend.file.device != "cuda" and bool(backend.lacks_gpus())


def _refuse_unfit(plan: Plan) -> None:
    """Memory check: refuse a requested strategy that cannot fit."""
    if plan.needs and not plan.needs["fits"]:
        short = plan.needs["short"].items()
        missing = " and ".join(f"{size / GIB:,.1f} GiB {WORDS[place]}" for place, size in short)
        raise UserError(
            f"--strategy {plan.strategy}: does not fit, {missing} missing; use --strategy auto, see wellread plan, "
            "or start it anyway with --force"
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
    """Prepare, plan and train; return the exit code."""
    job = Job.resolve(config, options)
    planned = job.planned()  # refuses what cannot be planned or cannot fit, before anything is written
    if not job.backend.file.python:  # otherwise the ranks have another Python
        packages.check(config)
    if _imagined(job.backend, options):
        raise UserError(
            f"--gpu_mem: {job.backend.lacks_gpus()}; wellread plan shows what a run on such GPUs would need"
        )
    if not config.cluster.nvme_path:
        if planned.rung.on_nvme:
            raise UserError(f"--strategy {planned.strategy}: needs --nvme_path, a directory on each node's NVMe disk")
        job = replace(job, machine=replace(job.machine, nvme=None))  # a size without a path is only for wellread plan
    if not options.force:
        _refuse_unfit(planned)
    identity.refuse_foreign(job.run)
    if options.strict:
        snapshot.refuse_dirty()
    return job.backend.train(job.training, job.settle, job.refuse_changed)


def _prepare(job: Job) -> int:
    directory = job.corpus_directory()
    is_new = not job.run.manifest_file.exists()
    # The program also checks the files of a model in a directory, before ranks start; without a corpus it compiles one.
    checks = is_new and job.spec.path is not None and job.config.model.init == "pretrained"
    compiled = (directory / "corpus.json").is_file()
    if compiled and not checks and _has_metrics(Corpus.open(directory), job.config):
        if is_new:
            print(f"corpus {directory}: already compiled", flush=True)
            summaries.summary(Corpus.open(directory))
        return 0
    return children.run(["-m", job.config.program, "prepare", RESOLVED], handed_over(job.config))


def _has_metrics(corpus: Corpus, config: RunConfig) -> bool:
    """Whether a compiled corpus has the text metrics and the scores of other programs that are requested."""
    scores = config.data.influence
    return (not config.data.metrics or sample_metrics.has(corpus)) and (
        not scores or influence.has(corpus, Path(scores))
    )
