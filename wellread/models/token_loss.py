"""Cross-entropy over a vocabulary in the memory of the logits alone.

torch's own keeps, beside logits in bf16, the same in fp32 and the logarithms of all probabilities, and in backward the
gradients of both: 16 bytes for each token and word where two are needed, and time, for no cache holds them. Here a few
rows at a time are in fp32, forward keeps nothing, and backward writes the gradient where the logits were, as
Liger-Kernel does on GPUs (Hsu et al. 2024, https://arxiv.org/abs/2410.10989). The numbers are torch's own.
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
        Of no further use after backward, which overwrites them.
    labels : (tokens,) int64

    Returns
    -------
    (tokens,) float32

    Raises
    ------
    IndexError
        When a label is not in the vocabulary.
    """
    found: torch.Tensor = _TokenLosses.apply(logits, labels)  # type: ignore[no-untyped-call]
    return found


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logits, labels)
        found = [logits.new_empty(0, dtype=torch.float32)]
        for part in _parts(logits):
            rows = logits[part].log_softmax(dim=1, dtype=torch.float32)
            found.append(rows.gather(1, labels[part, None])[:, 0].neg_())
        return torch.cat(found)

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
