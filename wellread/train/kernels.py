"""Kernels of shapes that a run will have, compiled in its first steps.

On a CPU, oneDNN compiles kernels in bf16 when a shape first appears, and keeps them: half a MiB per matrix product
(docs/memory.md). Rare shapes first appear after hundreds of steps, so memory would grow for as long. But the order of
the samples is known, and so are all shapes. After `AFTER` steps, a micro-batch of each shape that is still missing runs
once: a run that has enough memory then has enough for the next `AHEAD` steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from wellread.corpus.batch import collate, width_of
from wellread.corpus.padding import padded
from wellread.corpus.read import Corpus
from wellread.order.permutation import Order
from wellread.planning.plan import Plan
from wellread.train import ranks
from wellread.train.engines.base import Engine
from wellread.train.micro_batches import divide

AFTER = 40
"""Steps after which missing shapes run: most have appeared by then, and short runs compile nothing that they never use.
"""
AHEAD = 2000
"""Steps whose shapes are looked up: 0.1 ms each."""


def compile_ahead(engine: Engine, corpus: Corpus, order: Order, plan: Plan, start: int) -> None:
    """Run one micro-batch of each shape that the steps after ``start + AFTER`` have and those since `start` had not.

    Their tokens are 0 and their gradients are dropped, so the model reads nothing and does not change. ZeRO is left
    out: its forward passes are collective, and ranks have different shapes. So is `varlen`, where the shape of a
    micro-batch is its number of tokens, and hardly any appears twice.
    """
    if plan.machine.device != "cpu" or plan.dtype != "bf16" or plan.engine != "torch":
        return
    if corpus.packed or "varlen" in plan.fast:
        return
    for sample_ids in missing(corpus, order, plan, start):
        batch = collate(corpus, sample_ids)
        engine.forward_backward(replace(batch, tokens=torch.zeros_like(batch.tokens)), 0.0, last=False)
    engine.drop()


def missing(corpus: Corpus, order: Order, plan: Plan, start: int) -> Iterator[NDArray[np.int64]]:
    """Samples of the first micro-batch of this rank with each shape that appears from step ``start + AFTER`` on."""
    shapes: set[tuple[str, int, int]] = set()
    for step, sample_ids in enumerate(order.batches(start, min(start + AHEAD, plan.steps)), start):
        for slots in divide(corpus.lengths(sample_ids), plan, ranks.rank()):
            new = _shapes(corpus, sample_ids[slots]) - shapes
            shapes |= new
            if new and step >= start + AFTER:
                yield sample_ids[slots]


def _shapes(corpus: Corpus, sample_ids: NDArray[np.int64]) -> set[tuple[str, int, int]]:
    """What the kernels of a micro-batch depend on: that of the layers, and that of the output embedding."""
    width = width_of(int(corpus.lengths(sample_ids).max()), corpus.longest, "cpu", packed=False) - 1
    rows = padded(int(corpus.n_targets(sample_ids).sum()), len(sample_ids) * width)
    return {("layers", len(sample_ids), width), ("head", rows, 0)}
