"""A run of 12 samples, with a record and checkpoints but without a model, and its membership evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from eval import evaluate as evaluating
from eval.membership.evaluation import Membership
from wellread import checkpoint as checkpoints
from wellread.config import RunConfig
from wellread.corpus.canaries import Texts
from wellread.corpus.merge import merge
from wellread.corpus.read import Corpus
from wellread.corpus.shards import Sample, Shard, shard_path, write_shard
from wellread.files import write_json
from wellread.models import registry
from wellread.planning.machine import Machine
from wellread.planning.plan import Counts
from wellread.planning.planner import make_plan
from wellread.recipes.registry import resolve
from wellread.record.chain import genesis
from wellread.record.writer import RecordedBatch, RecordWriter
from wellread.results import Result
from wellread.run import RunDirectory
from wellread.tokens import COLUMNS, Tokens


def evaluate(
    run: RunDirectory,
    *,
    steps: Sequence[int] | None = None,
    progress: bool = True,
    scores: str = "loss",
    **settings: Any,
) -> list[Result]:
    return evaluating.evaluate(Membership(run, steps=steps, scores=scores, **settings), progress=progress)


def make_run(
    path: Path,
    *,
    sealed: int = 4,
    batches: int = 4,
    copies: bool = False,
    model: str = "tiny",
    canaries: Texts | None = None,
    skipped: Sequence[int] = (),
) -> RunDirectory:
    """A run of 8 trainable samples in order of their ids, two per batch, with a checkpoint every second batch.

    After four batches, samples are read again. The last ones are canaries, if there are any. The updates of the
    batches `skipped` were skipped.
    """
    corpus = make_corpus(path / "corpus", 8, sealed, copies, canaries)
    run, config = RunDirectory(path), resolve(RunConfig.of(data="sample"), registry.find("tiny"))
    write_json(run.manifest_file, {"identity": {"order": {"kind": "shuffle", "batch_size": 2}}, "attempts": [ATTEMPT]})
    run.write_config(config.replace(model=model))
    counts = Counts(samples=corpus.n, trainable=8, sealed=sealed, exact=True)
    plan = make_plan(
        config, registry.find("tiny"), Machine(cluster="local", nodes=1, ranks_per_node=1, device="cpu"), counts
    )
    write_json(run.plan_file, plan.as_dict())
    run.checkpoints.mkdir()
    writer = RecordWriter(run.record, start=genesis(corpus.hash, {}))
    save(run, writer, 0)
    for batch_id in range(batches):
        writer.append(replace(reading(corpus, batch_id), skipped=batch_id in skipped))
        if batch_id % 2:
            save(run, writer, batch_id + 1)
    writer.flush()
    return run


ATTEMPT = {"attempt": 1, "started": "2026-01-01T00:00:00+0000", "ranks": 1, "strategy": "ddp", "code": {"commit": None}, "python": "3", "packages": {"torch": "2"}}  # fmt: skip # noqa: E501


def make_corpus(path: Path, trainable: int, sealed: int, copies: bool, canaries: Texts | None = None) -> Corpus:
    samples = [
        Sample(
            tokens=[5 + i, 6, 7 + i % 3, 9], spans=[(2, 4)], document=3 if copies and i in (0, 7) else 100 + i,
            sealed=i >= trainable, set_id=0, row=i, category="qa",
        )
        for i in range(trainable + sealed)
    ]  # fmt: skip
    path.mkdir(parents=True)
    write_shard(shard_path(path, 0), Shard(samples))
    extra: dict[str, Any] = {}
    if canaries:
        canaries.write(path)
        doses, counts = np.unique(canaries.repeats[~canaries.control], return_counts=True)
        draw = {"per_dose": int(counts[0]), "repeats": doses.tolist(), "controls": int(canaries.control.sum())}
        registered = {"version": 1, "seed": 0, "text": "random", "at": "uniform", "sha256": canaries.sha256(0)}
        extra = {"canaries": draw | registered}
    merge(path, sets=("made up",), vocab_size=64, settings={}, extra=extra)
    return Corpus.open(path)


def reading(corpus: Corpus, batch_id: int) -> RecordedBatch:
    ids = np.array([2 * batch_id, 2 * batch_id + 1]) % corpus.n_trainable
    return RecordedBatch(
        batch_id=batch_id,
        sample_ids=ids,
        epochs=np.zeros(2, np.int64),
        n_targets=np.array([1, 3]),
        losses=np.array([4.0 - batch_id, 2.0 - batch_id / 4], np.float32),
        digests=[corpus.digest(int(i)) for i in ids],
    )


def save(run: RunDirectory, writer: RecordWriter, step: int) -> None:
    writer.flush()
    model = checkpoints.staging(run.checkpoints, step) / "model"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"weights")
    record = {"head": writer.head, "batches": [max(0, step - 2), step]}
    about = {"step": step, "tokens": 8 * step, "record": record, "holdout_loss": 4.0 - step / 10}
    checkpoints.commit(run.checkpoints, step, about)


def tokens_with(ids: Any, means: Any) -> Tokens:
    """Two tokens for each sample, with this log-probability each."""
    values = np.repeat(means, 2)
    columns: Any = {
        name: np.nan_to_num(values).astype(kind) if name == "rank" else values.astype(kind)
        for name, kind in COLUMNS.items()
    }
    return Tokens(sample_id=ids, bounds=2 * np.arange(ids.size + 1), **columns)


def write_texts(path: Path, texts: list[str], *, as_strings: bool = False) -> Path:
    path.write_text("".join(json.dumps(text if as_strings else {"text": text, "n": 1}) + "\n" for text in texts))
    return path
