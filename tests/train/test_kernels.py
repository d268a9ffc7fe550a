"""Kernels compiled ahead: those of all shapes of a run, each once, and nothing is read or changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from wellread.config import RunConfig
from wellread.corpus.batch import collate
from wellread.corpus.padding import padded
from wellread.corpus.read import Corpus
from wellread.models.load import Source
from wellread.models.registry import find
from wellread.order.permutation import Order
from wellread.planning.machine import Machine
from wellread.planning.plan import Counts, Plan
from wellread.planning.planner import make_plan
from wellread.recipes.registry import resolve
from wellread.train import kernels
from wellread.train.engines.torch_engine import TorchEngine
from wellread.train.micro_batches import divide

STEPS = 80


@pytest.fixture
def run(small_model: Path, corpus: Corpus) -> tuple[TorchEngine, Order, Plan]:
    spec = find("tiny")
    config = resolve(RunConfig.of(steps=STEPS), spec)
    counts = Counts(samples=corpus.n, trainable=corpus.n_trainable, sealed=corpus.n - corpus.n_trainable, exact=True)
    plan = make_plan(config, spec, Machine(cluster="local", nodes=1, ranks_per_node=1, device="cpu"), counts)
    order = Order(kind="shuffle", n=corpus.n_trainable, batch_size=plan.batch_size, seed=0)
    return TorchEngine(Source.of(small_model), config, plan), order, plan


def computed(corpus: Corpus, sample_ids: np.ndarray) -> set[tuple[int, ...]]:
    """Rows of the products of a micro-batch, from its tensors: of the layers, and of the output embedding."""
    batch = collate(corpus, sample_ids)
    tokens = len(sample_ids), batch.tokens.shape[1] - 1
    return {tokens, (padded(int(batch.targets.sum()), tokens[0] * tokens[1]),)}


def test_all_shapes_of_the_run_and_each_once(corpus: Corpus, run: tuple[TorchEngine, Order, Plan]) -> None:
    _, order, plan = run
    by_step = [
        [
            computed(corpus, order.batch(step)[slots])
            for slots in divide(corpus.lengths(order.batch(step)), plan, rank=0)
        ]
        for step in range(STEPS)
    ]
    before = set().union(*(each for step in by_step[: kernels.AFTER] for each in step))
    expected = set().union(*(each for step in by_step for each in step)) - before
    assert expected
    for sample_ids in kernels.missing(corpus, order, plan, 0):
        new = computed(corpus, sample_ids) - before
        assert new
        before |= new
        expected -= new
    assert not expected
    assert not list(kernels.missing(corpus, order, plan, STEPS - kernels.AFTER))


def test_nothing_is_read_and_nothing_changes(
    corpus: Corpus, run: tuple[TorchEngine, Order, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, order, plan = run
    before = [parameter.detach().clone() for parameter in engine._module.parameters()]
    passes = []
    forward_backward = engine.forward_backward

    def watched(batch: object, scale: float, last: bool) -> torch.Tensor:
        passes.append(batch)
        return forward_backward(batch, scale, last)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "forward_backward", watched)
    monkeypatch.setattr(kernels, "AFTER", STEPS - 20)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    kernels.compile_ahead(engine, corpus, order, replace(plan, fast=("varlen",)), 0)
    assert not passes  # its batches have no rows of one length
    kernels.compile_ahead(engine, corpus, order, plan, 0)
    assert len(passes) == len(list(kernels.missing(corpus, order, plan, 0))) > 0
    assert all(not batch.tokens.any() and batch.targets.any() for batch in passes)  # type: ignore[attr-defined]
    after = list(engine._module.parameters())
    assert all(torch.equal(old, new) and new.grad is None for old, new in zip(before, after, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
