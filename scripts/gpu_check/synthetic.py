"""A run directory of synthetic samples, as `launch` creates it for real data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from launch import identity
from wellread.config import ClusterConfig, RunConfig
from wellread.config.flat import keys_of
from wellread.config.run import KINDS
from wellread.corpus.building import building
from wellread.corpus.merge import merge
from wellread.corpus.read import Corpus
from wellread.corpus.shards import Sample, Shard, shard_path, write_shard
from wellread.files import write_json
from wellread.models.registry import find
from wellread.order.build import build
from wellread.planning.machine import Machine
from wellread.planning.plan import Counts
from wellread.planning.planner import make_plan
from wellread.recipes.registry import resolve
from wellread.run import RunDirectory

STEADY = {"optim": {"warmup": 0.0, "min_lr": 1.0}, "holdout": 0.0, "loss_on": "all", "order": "sequential"}
"""Settings of every trial: a constant learning rate, and samples in the order of the corpus."""
WAITING_STEPS = 3
"""Steps that are searched for waits of the host."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A few steps of one model with one set of settings."""

    settings: dict[str, Any]
    """Settings of the run by their names on the command line."""
    machine: dict[str, Any]
    """Fields of the machine of the plan."""
    recipe: str = "finetune"
    paths: tuple[str, ...] | None = None
    """Fast paths to choose from; None: all that this version has."""
    pieces: tuple[int, ...] = ()
    """Lengths of the samples, repeated; empty: each has the maximum length. With --pack, several fill a sequence."""
    warm: int = 2
    """Steps before the measurement."""
    steps: int = 6
    """Steps that are measured."""
    seconds: float = 30.0
    """Maximum time for the measured steps."""
    waits: bool = False
    """Count the host's waits for the device in further steps."""
    profile: bool = False
    """Profile one further step."""

    @property
    def total(self) -> int:
        """Number of all steps."""
        return self.warm + self.steps + WAITING_STEPS * self.waits + self.profile


def make_run(trial: Trial, folder: Path) -> RunDirectory:
    """Create the run directory and the corpus of a trial, as `launch` does for real data.

    Raises
    ------
    UserError
        When this version has no such setting, or the settings do not suit the model or the machine.
    """
    kind = kind_named(trial.recipe)
    usual = {name: value for name, value in STEADY.items() if kind is RunConfig or name != "loss_on"}
    flags = {**usual, "steps": trial.total, "save_every": trial.total, "log_every": 1, **supported(trial.settings)}
    spec = find(flags["model"])
    config = resolve(kind.of(**flags, out=str(folder / "run"), corpora=str(folder)), spec)
    machine = Machine(**trial.machine)
    corpus = _make_corpus(trial, config, spec.vocab, folder)
    counts = Counts(samples=corpus.n, trainable=corpus.n, sealed=0, exact=True)
    paths: dict[str, Any] = {} if trial.paths is None else {"paths": trial.paths}
    plan = replace(
        make_plan(config, spec, machine, counts, **paths), forced=True
    )  # a row shows what happens if it does not fit
    run, order = RunDirectory(folder / "run"), build(config.schedule, corpus)
    run.path.mkdir(parents=True)
    run.log.mkdir()
    random = replace(spec, fresh=True)  # its published weights are not read
    identity.begin(run, config, identity.of(config, random, corpus.hash, order.order, plan), corpus.path, order)
    write_json(run.plan_file, plan.as_dict())
    return run


def kind_named(recipe: str) -> type[RunConfig]:
    """The settings of a recipe."""
    return next(kind for kind in KINDS if kind.program == recipe)


def unsupported(recipe: str, settings: dict[str, Any]) -> list[str]:
    """Settings that this version does not have, and that would change something."""
    names = supported(settings).keys() - keys_of(kind_named(recipe)).keys()
    return sorted(names)


def supported(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without those that turn off what this version does not have."""
    known_names = keys_of(RunConfig).keys() | keys_of(kind_named("pretrain")).keys()
    remaining = {name: value for name, value in settings.items() if name in known_names or value != "off"}
    if "compile" in remaining and isinstance(ClusterConfig().compile, bool):
        remaining["compile"] = remaining["compile"] == "on"
    return remaining


def _make_corpus(trial: Trial, config: RunConfig, vocab: int, folder: Path) -> Corpus:
    """A corpus of random tokens; every token except the first of a sample is a target."""
    words = int(str(getattr(config.data, "vocab", None) or vocab))
    seq_len = config.data.seq_len or 0
    lengths = trial.pieces or (seq_len,)
    sequences = trial.total * (config.schedule.batch_size or 1)
    samples = sequences * (max(1, seq_len // max(1, sum(lengths))) * len(lengths) if config.data.pack else 1)
    random = np.random.default_rng(0)
    with building(folder / "corpus") as target:
        assert target is not None
        shard = Shard([])
        for number in range(samples):
            length = lengths[number % len(lengths)]
            tokens = random.integers(1, words, length)
            origin: dict[str, Any] = {"document": number, "sealed": False, "set_id": 0, "row": number + 1}
            shard.samples.append(Sample(tokens=tokens, spans=[(1, length)], category="", **origin))
        write_shard(shard_path(target, 0), shard)
        (target / "tokenizer").mkdir()
        (target / "tokenizer" / "tokenizer.json").write_text(NO_WORDS)
        (target / "tokenizer" / "tokenizer_config.json").write_text(NO_WORDS_CONFIG)
        sets = [{"name": "random", "rows": samples}]
        extra = {"kind": "text", "sets": sets, "tokenizer": {"size": words, "eos": 0, "sha256": ""}, "bad_rows": []}
        pack = seq_len if config.data.pack else None
        merge(target, sets=["random"], vocab_size=vocab, settings={}, extra=extra, pack=pack)
    return Corpus.open(folder / "corpus")


NO_WORDS = (
    '{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null, '
    '"pre_tokenizer": null, "post_processor": null, "decoder": null, '
    '"model": {"type": "WordLevel", "vocab": {"<eos>": 0}, "unk_token": "<eos>"}}'
)
NO_WORDS_CONFIG = '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}'


def model_of(run: RunDirectory) -> Any:
    """The model of the run: a pretraining has the vocabulary of its corpus."""
    from wellread.recipes.registry import model_of_run

    return model_of_run(run)


def machine_of(device: str, gpu_mem: float | None, host_mem: float | None) -> dict[str, Any]:
    """The machine of a trial: one rank."""
    return asdict(Machine(device=device, ranks_per_node=1, gpu_mem=gpu_mem, host_mem=host_mem))
