"""Which batches are bad, what a guard remembers, which samples it names; and dropping a step, in every strategy."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wellread.config import RunConfig
from wellread.corpus.batch import collate
from wellread.corpus.read import Corpus
from wellread.models.load import Source
from wellread.models.registry import find
from wellread.planning.machine import Machine
from wellread.planning.plan import Counts, Plan
from wellread.planning.planner import make_plan
from wellread.recipes.registry import resolve
from wellread.record.reader import Record
from wellread.record.writer import RecordedBatch, RecordWriter
from wellread.train.engines.torch_engine import TorchEngine
from wellread.train.guard import IN_A_ROW, LEAST, WINDOW, Guard, mean_loss, name_samples, past_of


def test_losses_that_are_not_finite_are_bad_from_the_first_batch() -> None:
    guard = Guard(None)
    assert guard.verdict(float("nan")) == "loss is not finite (nan)"
    assert guard.verdict(float("inf")) == "loss is not finite (inf)"
    assert guard.verdict(1e9) is None


def test_a_spike_is_above_the_median_of_trained_batches() -> None:
    guard = Guard(1.5)
    for loss in [2.0] * (LEAST - 1):
        guard.note(loss, skipped=False)
    assert guard.verdict(100.0) is None  # too little to compare with
    for loss in (100.0, 100.0):
        guard.note(loss, skipped=True)
    assert guard.verdict(100.0) is None  # skipped batches do not count
    guard.note(4.0, skipped=False)
    assert guard.verdict(3.0) is None
    assert guard.verdict(3.001) == f"loss 3.0010 is above 1.5 x 2.0000, the median of the last {LEAST} batches"
    for _ in range(WINDOW):
        guard.note(1.0, skipped=False)
    assert guard.verdict(1.501) is not None


def test_a_run_that_skips_all_batches_stops() -> None:
    guard = Guard(None)
    for _ in range(IN_A_ROW - 1):
        guard.note(float("nan"), skipped=True)
    with pytest.raises(FloatingPointError, match="10 consecutive batches would have been skipped"):
        guard.note(float("nan"), skipped=True)


def reading(batch_id: int, losses: list[float], *, skipped: bool = False) -> RecordedBatch:
    n = len(losses)
    return RecordedBatch(
        batch_id=batch_id,
        sample_ids=np.arange(n),
        epochs=np.zeros(n, dtype=np.int64),
        n_targets=np.arange(1, n + 1),
        losses=np.array(losses, dtype=np.float32),
        digests=[b"0" * 16] * n,
        skipped=skipped,
    )


def test_memory_of_a_guard_is_restored_from_the_record(tmp_path: Path) -> None:
    writer, past = RecordWriter(tmp_path, start="00" * 32), []
    losses = np.random.default_rng(0).uniform(1, 9, (WINDOW + 5, 3)).tolist()
    for batch_id, row in enumerate(losses):
        read = reading(batch_id, row, skipped=batch_id % 7 == 0)
        writer.append(read)
        past.append((mean_loss(read.losses, read.n_targets), read.skipped))
    writer.flush()
    record = Record.open(tmp_path)
    assert past_of(record, WINDOW + 5) == past[5:]
    assert past_of(record, 3) == past[:3]
    assert past_of(record, 0) == []
    assert past[0][0] == pytest.approx((losses[0][0] + 2 * losses[0][1] + 3 * losses[0][2]) / 6)


def test_an_infinite_gradient_changes_nothing(small_model: Path, corpus: Corpus, tiny_plan: Plan) -> None:
    """Neither weights nor accumulated gradients change. For DeepSpeed see test_engines.py."""
    import torch

    engine = TorchEngine(Source.of(small_model), RunConfig.of(dtype="fp32"), tiny_plan)
    batch = collate(corpus, np.arange(2))
    short = replace(batch, tokens=batch.tokens[:, :64], targets=batch.targets[:, :64])
    loss = engine.forward_backward(short, float("inf"), last=True)
    assert not np.isfinite(engine.step(1e-2))
    assert torch.equal(engine.evaluate(short), loss)
    assert torch.equal(engine.forward_backward(short, 1.0, last=True), loss)
    engine.drop()
    assert torch.equal(engine.evaluate(short), loss)
    engine.forward_backward(short, 1.0, last=True)
    once = engine.step(1e-2)
    assert np.isfinite(once)
    assert not torch.equal(engine.evaluate(short), loss)

    fresh = TorchEngine(Source.of(small_model), RunConfig.of(dtype="fp32"), tiny_plan)
    fresh.forward_backward(short, 1.0, last=True)
    assert fresh.step(1e-2) == once


@pytest.fixture
def tiny_plan() -> Plan:
    cluster = Machine(cluster="local", nodes=1, ranks_per_node=1, device="cpu")
    counts = Counts(samples=40, trainable=32, sealed=8, exact=True)
    spec = find("tiny")
    return make_plan(resolve(RunConfig.of(batch_size=2, dtype="fp32"), spec), spec, cluster, counts)


def test_samples_are_named_with_their_rows_largest_loss_first(corpus: Corpus) -> None:
    text = name_samples(corpus, reading(0, [1, 2, float("nan"), 9, 3, 4, 5, 6, 7, 8, 0.5]))
    row = corpus.samples().slice(2, 1).to_pylist()[0]["rows"][0]
    assert text.startswith(f"samples, largest loss first: 2 (sample:{row}, loss nan), 3 (sample:")
    assert text.count("loss ") == 9
    assert text.endswith(", loss 3) and 3 more")
    assert "more" not in name_samples(corpus, reading(0, [1.0, 2.0]))
