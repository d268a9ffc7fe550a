"""A batch of samples with segments, for tests that compare two ways to compute losses and gradients."""

from __future__ import annotations

import torch
from torch import nn

from support.small_models import VOCAB
from wellread.corpus.batch import Batch

SEGMENTS = ((9, 1, 12, 5), (3, 2), (14,), (2, 13, 7))
"""Lengths of the segments of each sample; one is a single token."""


def batch(*, packed: bool, width: int = 32) -> Batch:
    """Padded samples; each segment has a prompt without targets, one sample has no target at all."""
    generator = torch.Generator().manual_seed(1)
    rows = SEGMENTS if packed else tuple((sum(each),) for each in SEGMENTS)
    tokens, targets, segments = (torch.zeros(len(rows), width, dtype=torch.int64) for _ in range(3))
    for row, lengths in enumerate(rows):
        end = 0
        for number, length in enumerate(lengths):
            tokens[row, end : end + length] = torch.randint(1, VOCAB, (length,), generator=generator)
            targets[row, end + max(1, length // 3) : end + length] = row != 1
            segments[row, end : end + length] = number
            end += length
        segments[row, end:] = len(lengths)
    lengths = torch.tensor([sum(each) for each in rows])
    return Batch(torch.arange(len(rows)) + 7, lengths, tokens, targets.bool(), segments if packed else None)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
