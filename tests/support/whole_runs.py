"""Small runs with all their files, as launch and the ranks leave them, without a training: to verify, to alter."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from wellread import checkpoint as checkpoints
from wellread.config import RunConfig, to_dict
from wellread.corpus import tokenizer
from wellread.corpus.holdout import is_sealed
from wellread.corpus.merge import merge
from wellread.corpus.read import Corpus
from wellread.corpus.shards import Sample, Shard, shard_path, write_shard
from wellread.files import with_checksum, write_json
from wellread.models import registry
from wellread.order.permutation import Order
from wellread.planning.machine import Machine
from wellread.planning.plan import Counts
from wellread.planning.planner import make_plan
from wellread.recipes.registry import recipe_of, resolve
from wellread.record.chain import genesis
from wellread.record.writer import RecordedBatch, RecordWriter
from wellread.run import RunDirectory

OLD = Path(__file__).parents[1] / "fixtures" / "run-c5af5a2"
SAVED = (0, 3, 6)
ATTEMPT = {
    "attempt": 1,
    "started": "2026-11-27T12:00:00+0000",
    "cluster": "local",
    "strategy": "ddp",
    "ranks": 1,
    "nodes": 1,
    "ranks_per_node": 1,
    "device": "cpu",
    "hosts": ["localhost"],
    "host": "localhost",
    "python": "3.11.7",
    "platform": "Linux",
    "packages": {},
    "code": {"commit": None},
    "ended": "2026-11-27T12:00:09+0000",
    "exit_code": 0,
}


def make(kind: str, path: Path) -> RunDirectory:
    """A run: `finetune` and `pretrain` are real ones of an old version, `packed` and `lora` follow from their ids.

    With `real-` before its name it is trained now.
    """
    if kind.startswith("real-"):
        return _train(kind.removeprefix("real-"), path)
    if kind in ("finetune", "pretrain"):
        shutil.copytree(OLD / kind / "run", path)
        return RunDirectory.open(path)
    corpus = _corpus(path / "corpus", packed=kind == "packed")
    spec = registry.find(str(OLD / "finetune" / "model"))
    settings: dict[str, Any] = {"pack": True} if kind == "packed" else {"lora": {"rank": 4}}
    config = resolve(
        RunConfig.of(
            model=str(OLD / "finetune" / "model"), data="sample", out=str(path), steps=6, batch_size=4, seq_len=16,
            dtype="fp32", strategy="ddp", **settings,
        ),
        spec,
    )  # fmt: skip
    order = Order(kind="shuffle", seed=config.schedule.seed, n=corpus.n_trainable, batch_size=4)
    counts = Counts(samples=corpus.n, trainable=corpus.n_trainable, sealed=corpus.n - corpus.n_trainable, exact=True)
    machine = Machine(cluster="local", nodes=1, ranks_per_node=1, device="cpu")
    plan = make_plan(config, spec, machine, counts)
    assert plan.warmup_steps == ceil(config.optim.warmup * plan.steps)
    identity = {
        "model": "weights:" + "0" * 32, "corpus": corpus.hash, "order": order.identity(), "batch_size": 4,
        "seq_len": plan.seq_len, "seed": 0, "steps": plan.steps, "dtype": plan.dtype, "optim": to_dict(config.optim),
    } | recipe_of(config).identity(config)  # fmt: skip
    run = RunDirectory(path)
    run.write_config(config)
    write_json(run.plan_file, with_checksum(plan.as_dict()))
    write_json(run.manifest_file, with_checksum({"version": 1, "identity": identity, "attempts": [ATTEMPT]}))
    _read(run, corpus, order, identity, adapter=kind == "lora")
    return run


def _train(kind: str, path: Path) -> RunDirectory:
    """Train a run through the command line."""
    flags = ["--batch_size", "4", "--save_every", "8", "--keep_states", "1", "--generations", "1", "--strategy", "ddp"]
    flags += [
        "--ranks_per_node",
        "1",
        "--snapshot",
        "off",
        "--out",
        str(path),
        "--corpora",
        str(path.parent / "corpora"),
    ]
    if kind == "pretrain":
        order = f"curriculum:{OLD / 'pretrain' / 'curriculum.yaml'}"
        flags += ["--size", "8x1x2", "--data", "stories:60", "--vocab", "512", "--metrics", "--order", order]
        flags += ["--seq_len", "64", "--steps", "24", "--save_schedule", "linear"]
    else:
        data = OLD / "finetune" / "data.jsonl"
        flags += ["--model", str(OLD / "finetune" / "model"), "--data", str(data), "--seq_len", "128", "--steps", "12"]
        flags += {"packed": ["--pack"], "lora": ["--lora.rank", "4"]}.get(kind, [])
    recipe = "pretrain" if kind == "pretrain" else "finetune"
    command = [sys.executable, "-m", "wellread", "run", recipe, *flags]
    subprocess.run(command, cwd=OLD.parents[2], check=True, capture_output=True)
    return RunDirectory.open(path)


def _corpus(path: Path, packed: bool) -> Corpus:
    path.mkdir(parents=True)
    samples = [
        Sample(
            tokens=[5 + i, 6, 7 + i % 3, 8, 9][: 3 + i % 3], spans=[(1, 2), (2, 3)], document=100 + i,
            sealed=is_sealed(100 + i, 0.25, 0), set_id=0, row=i + 1, category="qa" if i % 2 else "chat",
        )
        for i in range(60)
    ]  # fmt: skip
    write_shard(shard_path(path, 0), Shard(samples))
    (path / "tokenizer").mkdir()
    tokenizer.copy_files(OLD / "finetune" / "model", path / "tokenizer")
    size, eos = 320, 0
    files = tokenizer.fingerprint(path / "tokenizer")
    about = {
        "kind": "instruction",
        "sets": [
            {"name": "small", "schema": "dolly", "template": "dolly", "rows": 60, "taken": 60, "usable": 60}
            | {"sha256": "0" * 64}
        ],
        "tokenizer": {"size": size, "eos": eos, "sha256": files},
        "bad_rows": [],
    }
    settings = {
        "version": 2, "sets": [{"name": "small", "schema": "dolly", "content": "0" * 64}], "tokenizer": files,
        "seq_len": 16, "holdout": 0.25, "holdout_seed": 0, "loss_on": "responses", "max_bad_rows": 0,
    } | ({"pack": True} if packed else {})  # fmt: skip
    merge(path, sets=("small",), vocab_size=size, settings=settings, extra=about, pack=16 if packed else None)
    shutil.rmtree(path / "shards")
    return Corpus.open(path)


def _read(run: RunDirectory, corpus: Corpus, order: Order, identity: dict[str, Any], adapter: bool) -> None:
    """Record all batches, and save the checkpoints."""
    run.checkpoints.mkdir()
    writer = RecordWriter(run.record, start=genesis(corpus.hash, order.identity()))
    tokens = 0
    for step in range(SAVED[-1] + 1):
        if step in SAVED:
            writer.flush()
            staging = checkpoints.staging(run.checkpoints, step)
            (staging / "model").mkdir(parents=True)
            names = (
                ["adapter_config.json", "adapter_model.safetensors"]
                if adapter
                else ["config.json", "model.safetensors"]
            )
            for name in names:
                content = json.dumps({"rope_theta": 10000.0}) if name.endswith(".json") else f"{name} at {step}"
                (staging / "model" / name).write_text(content)
            tokenizer.copy_files(corpus.tokenizer, staging / "model")
            saved = max((each for each in SAVED if each < step), default=0)
            about = {
                "step": step, "tokens": tokens, "skipped": 0, "record": {"head": writer.head, "batches": [saved, step]},
                "corpus": corpus.hash, "identity": identity, "strategy": "ddp", "ranks": 1, "dtype": "fp32",
                "holdout_loss": 4.0,
            }  # fmt: skip
            checkpoints.commit(run.checkpoints, step, about)
        if step < SAVED[-1]:
            ids = order.batch(step)
            tokens += int(corpus.lengths(ids).sum())
            writer.append(
                RecordedBatch(
                    batch_id=step,
                    sample_ids=ids,
                    epochs=order.epochs(step * 4 + np.arange(4)),
                    n_targets=corpus.n_targets(ids),
                    losses=np.full(4, 2.5, np.float32),
                    digests=[corpus.digest(int(i)) for i in ids],
                )
            )
