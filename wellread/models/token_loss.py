"""Cross-entropy over a vocabulary that needs no memory in addition to the logits.

For logits in bf16, torch's implementation saves the logits in fp32 and the log-probabilities, and in backward the
gradients of both. That is 16 bytes per token and vocabulary entry instead of 2, and slow, because it does not fit into
caches. Here only a few rows at a time are in fp32, forward saves nothing, and backward overwrites the logits with their
gradient, as in Liger-Kernel (Hsu et al. 2024, https://arxiv.org/abs/2410.10989). The results equal those of torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from wellread.models.limits import LOGITS_AT_ONCE


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each label, in nats.

    Parameters
    ----------
    logits : (tokens, vocabulary), floating point
        Must not be used after backward, which overwrites them.
    labels : (tokens,) int64

    Returns
    -------
    (tokens,) float32

    Raises
    ------
    IndexError
        When a label is not in the vocabulary.
    """
    losses: torch.Tensor = _TokenLosses.apply(logits, labels)  # type: ignore[no-untyped-call]
    return losses


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logits, labels)
        losses = [logits.new_empty(0, dtype=torch.float32)]
        for part in _parts(logits):
            rows = logits[part].log_softmax(dim=1, dtype=torch.float32)
            losses.append(rows.gather(1, labels[part, None])[:, 0].neg_())
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, labels = ctx.saved_tensors
        (gradient,) = gradients
        for part in _parts(logits):
            rows = logits[part].softmax(dim=1, dtype=torch.float32)
            rows[torch.arange(len(rows), device=rows.device), labels[part]] -= 1
            logits[part] = rows.mul_(gradient[part, None])
        return logits, None


def _parts(logits: torch.Tensor) -> Iterator[slice]:
    step = max(1, LOGITS_AT_ONCE["cpu" if logits.is_cpu else "cuda"] // logits.shape[1])
    return (slice(start, start + step) for start in range(0, len(logits), step))
