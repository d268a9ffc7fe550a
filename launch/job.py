"""One launch: prepare the corpus, plan, start the ranks, return their exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launch import cluster as clusters
from launch import ops
from wellread import provenance
from wellread.checkpoint import list_checkpoints
from wellread.cli import print_error
from wellread.config import RunConfig, to_argv, to_dict
from wellread.data import instruct, sources, tokenizer
from wellread.data.corpus import Corpus
from wellread.models import registry
from wellread.order import Order
from wellread.plan import Cluster, Counts, Plan, make_plan, resolve
from wellread.runs import RunDirectory, write_json


@dataclass(frozen=True)
class Job:
    """A resolved request: what to run, and on what."""

    config: RunConfig
    spec: registry.ModelSpec
    source: sources.Source
    cluster: Cluster

    @classmethod
    def resolve(cls, config: RunConfig) -> Job:
        """Look up everything that needs no heavy import.

        Raises
        ------
        ValueError
            For an unknown model, data set, cluster or setting.
        """
        if Path(config.model).expanduser().is_dir():
            config = replace(config, model=str(Path(config.model).expanduser().resolve()))
        spec = registry.find(config.model)
        config = resolve(config, spec)
        return cls(config, spec, sources.find(config.data or ""), clusters.probe(config))

    @property
    def run(self) -> RunDirectory:
        """The run directory, whether or not it is there."""
        return RunDirectory(Path(self.config.out or ""))

    def corpus_directory(self) -> Path:
        """Where the corpus is compiled to."""
        directory = None if self.spec.fresh else registry.local_directory(self.spec, weights=False)
        return instruct.corpus_directory(self.config, self.source, tokenizer.identify(directory, self.spec.vocab))

    def plan(self, corpus: Corpus | None) -> Plan:
        """Plan the run; without a compiled corpus, from the rows of the source."""
        return make_plan(self.config, self.spec, self.cluster, _counts(corpus) if corpus else self._estimate())

    def _estimate(self) -> Counts:
        if self.source.path is None and self.source.published_rows is None:
            raise ValueError(f"--data {self.config.data}: its size is not known before it is downloaded")
        rows = sum(1 for _ in sources.rows(self.source)) if self.source.path else self.source.published_rows or 0
        sealed = round(rows * self.config.holdout)
        return Counts(samples=rows, trainable=rows - sealed, sealed=sealed, exact=False)

    def planned(self) -> Plan:
        """The plan as far as it is known without starting or downloading anything."""
        local = self.spec.fresh or self.spec.path is not None
        directory = self.corpus_directory() if local else None
        compiled = directory is not None and (directory / "corpus.json").is_file()
        return self.plan(Corpus.open(directory) if directory is not None and compiled else None)


def _counts(corpus: Corpus) -> Counts:
    return Counts(samples=corpus.n, trainable=corpus.n_trainable, sealed=corpus.n - corpus.n_trainable, exact=True)


def run(config: RunConfig) -> int:
    """Prepare, plan and train; return the job's exit code."""
    job = Job.resolve(config)
    job.planned()  # what cannot be planned is refused before anything is written
    _refuse_foreign(job.run)
    with job.run.lock():
        code = _prepare(job)
        if code:
            return code
        corpus = Corpus.open(job.corpus_directory())
        plan = job.plan(corpus)
        if _settle(job, corpus, plan):
            print(f"{job.run.path} is finished: step {plan.steps} of {plan.steps}; nothing to do", flush=True)
            return 0
        return _start(job, plan)


def _prepare(job: Job) -> int:
    if (job.corpus_directory() / "corpus.json").is_file():
        return 0
    command = [sys.executable, "-m", "finetune", "prepare", *to_argv(job.config)]
    return subprocess.run(command, check=False).returncode


def _settle(job: Job, corpus: Corpus, plan: Plan) -> bool:
    """Begin the run directory, or make sure that it belongs to this very run; True when the run is finished."""
    run, identity = job.run, _identity(job, corpus, plan)
    if run.manifest_file.exists():
        _refuse_other(run, run.manifest()["identity"], identity)
        begun = any(run.checkpoints.glob("step-*"))
        if begun and job.config.resume == "never":
            raise ValueError(f"{run.path}: has begun, and --resume never was asked for; choose another --out")
    else:
        write_json(run.manifest_file, {"version": 1, "identity": identity, "attempts": []})
    link = run.path / "corpus"
    if not link.is_dir():
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
        raise ValueError(f"{run.path}: is a file; choose another --out")
    if unknown := [p.name for p in run.path.iterdir() if p.name not in ("lock", "corpus")]:
        raise ValueError(f"{run.path}: holds {', '.join(sorted(unknown)[:3])} but no run; choose another --out")


def _identity(job: Job, corpus: Corpus, plan: Plan) -> dict[str, Any]:
    """What makes a run this run: a change of any of it is refused at resume."""
    config = job.config
    order = Order(kind="shuffle", seed=config.seed, n=corpus.n_trainable, batch_size=plan.batch_size)
    return {
        "model": registry.fingerprint(job.spec),
        "corpus": corpus.hash,
        "order": order.identity(),
        "batch_size": plan.batch_size,
        "seq_len": plan.seq_len,
        "seed": config.seed,
        "steps": plan.steps,
        "dtype": plan.dtype,
        "optim": to_dict(config.optim),
    }


def _refuse_other(run: RunDirectory, there: dict[str, Any], asked: dict[str, Any]) -> None:
    there, asked = _flat(there), _flat(asked)
    differences = [
        f"{key} is {_short(there.get(key))} there, {_short(asked[key])} asked for"
        for key in asked
        if there.get(key) != asked[key]
    ]
    if differences:
        raise ValueError(f"{run.path}: holds another run ({'; '.join(differences)}); choose another --out")


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
    run, manifest = job.run, job.run.manifest()
    attempt = len(manifest["attempts"]) + 1
    variables = clusters.environment(plan, attempt)
    for op in ops.needed(plan):
        ops.ensure(op, variables)
    started = {"attempt": attempt, "started": _now(), "ranks": plan.ranks, "strategy": plan.strategy}
    manifest["attempts"].append(started | provenance.describe())
    write_json(run.manifest_file, manifest)
    write_json(run.plan_file, to_dict(plan))
    print(f"training {run.path}: {summary(plan)}", flush=True)
    code = clusters.start_local(["-m", "finetune", "train", str(run.path)], plan, variables)
    manifest["attempts"][-1] |= {"ended": _now(), "exit_code": code}
    write_json(run.manifest_file, manifest)
    if code:
        _show_first_error(run, attempt)
    return code


def _show_first_error(run: RunDirectory, attempt: int) -> None:
    """Say which rank failed first, and why; the others often fail only because it is gone."""
    errors = [json.loads(path.read_text()) for path in run.log.glob(f"attempt-{attempt:03d}-rank-*.error.json")]
    if errors:
        first = min(errors, key=lambda error: float(error["time"]))
        print_error(f"rank {first['rank']} failed first: {first['error']} (log: {run.log})")


def summary(plan: Plan) -> str:
    """One line about a plan."""
    return (
        f"{plan.steps} steps of {plan.batch_size} samples on {plan.ranks} {plan.device} rank{'s' * (plan.ranks > 1)}, "
        f"{plan.strategy}, {plan.dtype}"
    )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
