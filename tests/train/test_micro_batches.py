"""Micro-batches by tokens: every sample once, none too large, and the same ends on every rank."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from wellread.config import RunConfig
from wellread.corpus.padding import padded
from wellread.models.registry import find
from wellread.planning.machine import Machine
from wellread.planning.plan import Counts, Plan
from wellread.planning.planner import make_plan
from wellread.recipes.registry import resolve
from wellread.train.micro_batches import divide


def plan(ranks: int = 2, batch_size: int = 256, **flags: object) -> Plan:
    spec = find("pythia-70m")
    machine = Machine(device="cuda", ranks_per_node=ranks, gpu_mem=80, host_mem=500)
    counts = Counts(samples=5000, trainable=4000, sealed=1000, exact=True)
    flags = {"fast": "on", "steps": 10, "seq_len": 512} | flags
    config = resolve(RunConfig.of(model=spec.name, batch_size=batch_size, **flags), spec)
    return make_plan(config, spec, machine, counts)


def test_the_plan_allows_as_many_samples_as_have_32768_tokens() -> None:
    assert "tokens" in plan().fast
    assert (plan().micro_batch_size, plan().accumulation) == (64, 2)
    assert (plan(fast="off").micro_batch_size, plan(fast="off").accumulation) == (8, 16)
    assert plan(seq_len=2048).micro_batch_size == 16
    assert plan(ranks=1, batch_size=24).micro_batch_size == 24
    by_flag = plan(micro_batch_size=4)
    assert "tokens" not in by_flag.fast
    assert (by_flag.micro_batch_size, "tokens: --micro_batch_size is given" in by_flag.fast_reason) == (4, True)


@pytest.mark.parametrize("flat", [False, True], ids=["padded", "varlen"])
def test_micro_batches_hold_tokens_instead_of_samples(flat: bool) -> None:
    decided = plan()
    decided = replace(decided, fast=("tokens", "varlen") if flat else ("tokens",))
    lengths = np.random.default_rng(0).integers(2, 513, 256)
    lengths[:40] = 512
    by_rank = [divide(lengths, decided, rank) for rank in range(2)]
    slots = np.concatenate([each for rank in by_rank for each in rank])
    assert sorted(slots.tolist()) == list(range(256))
    assert [len(each) for each in by_rank[0]] == [len(each) for each in by_rank[1]]
    limit = 64 * 512
    for each in (micro for rank in by_rank for micro in rank):
        tokens = lengths[each].sum() if flat else padded(int(lengths[each].max()), 512, "cuda") * len(each)
        assert 0 < tokens <= limit
    fixed = divide(lengths, replace(decided, fast=()), 0)
    assert [len(each) for each in fixed] == [64, 64]
    short = divide(np.full(256, 100), decided, 0)
    assert [len(each) for each in short] == [128]  # one pass instead of two
    assert [len(each) for each in divide(np.full(256, 512), decided, 0)] == [64, 64]


def test_deepspeed_keeps_its_fixed_number() -> None:
    decided = replace(plan(strategy="zero2"), fast=("tokens",))
    assert decided.engine == "deepspeed"
    assert [len(each) for each in divide(np.full(256, 100), decided, 1)] == [64, 64]
