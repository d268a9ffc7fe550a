"""Measuring losses of sealed samples: the values, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wellread.config import RunConfig, WatchConfig
from wellread.corpus.read import Corpus
from wellread.models.load import Source
from wellread.models.registry import find
from wellread.planning.machine import Machine
from wellread.planning.plan import Counts
from wellread.planning.planner import make_plan
from wellread.recipes.registry import resolve
from wellread.train.engines.torch_engine import TorchEngine
from wellread.train.sealed import SealedMeter, summed_losses


def test_random_state_and_model_mode_stay(small_model: Path, corpus: Corpus) -> None:
    spec = find("tiny")
    config = resolve(RunConfig.of(dtype="fp32", batch_size=8), spec)
    counts = Counts(samples=corpus.n, trainable=corpus.n_trainable, sealed=corpus.n - corpus.n_trainable, exact=True)
    machine = Machine(cluster="local", nodes=1, ranks_per_node=1, device="cpu")
    plan = make_plan(config, spec, machine, counts)
    engine = TorchEngine(Source.of(small_model), config, plan)
    meter = SealedMeter(corpus, plan, WatchConfig(eval_samples=4, eval_every=1), seed=0)
    torch.manual_seed(7)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    first, second = (meter.measure(engine, step, holdout=False) for step in (0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # type: ignore[index]
    assert all(module.training for module in engine._module.modules())
    assert all(parameter.grad is None for parameter in engine._module.parameters())
    assert first.holdout is second.holdout is None
    assert first.losses is not None
    assert second.losses is not None
    assert not set(first.losses.sample_ids) & set(second.losses.sample_ids)
    assert meter.values == 8
    assert meter.steps == {*range(plan.steps + 1)}
    assert not meter.has_holdout_loss(5)  # 4 samples are fewer than the fixed ones
    every_100 = SealedMeter(corpus, plan, WatchConfig(eval_every=100), seed=0)
    assert [step for step in sorted(every_100.steps) if every_100.has_holdout_loss(step)] == [
        *range(0, plan.steps + 1, 100)
    ]

    with_holdout = meter.measure(engine, 2, holdout=True)
    sealed = np.arange(corpus.n_trainable, corpus.n)  # fewer than 256: all of them
    sums = summed_losses(engine, corpus, plan, sealed)
    assert with_holdout.holdout == pytest.approx(sums.sum() / corpus.n_targets(sealed).sum(), rel=1e-12)
    assert with_holdout.losses is not None
    ids = with_holdout.losses.sample_ids
    expected = sums[ids - corpus.n_trainable] / corpus.n_targets(ids)
    assert with_holdout.losses.losses == pytest.approx(expected, rel=1e-6)


def test_the_last_batch_has_as_many_samples_as_the_others(
    small_model: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU keeps kernels for each number of samples, and how many are left over differs each time."""
    spec = find("tiny")
    config = resolve(RunConfig.of(dtype="fp32", batch_size=8), spec)
    counts = Counts(samples=corpus.n, trainable=corpus.n_trainable, sealed=corpus.n - corpus.n_trainable, exact=True)
    plan = make_plan(config, spec, Machine(cluster="local", nodes=1, ranks_per_node=1, device="cpu"), counts)
    engine = TorchEngine(Source.of(small_model), config, plan)
    sizes: list[int] = []
    evaluate = engine.evaluate

    def counted(batch: Any) -> torch.Tensor:
        sizes.append(len(batch.tokens))
        return evaluate(batch)

    monkeypatch.setattr(engine, "evaluate", counted)
    ids = np.arange(corpus.n_trainable, corpus.n_trainable + 21)
    sums = summed_losses(engine, corpus, plan, ids)
    assert sizes == [8, 8, 8]
    one_by_one = [summed_losses(engine, corpus, plan, ids[i : i + 1])[0] for i in range(len(ids))]
    assert sums == pytest.approx(one_by_one, rel=1e-5)
    assert set(sizes[3:]) == {1}  # few samples are not filled up
