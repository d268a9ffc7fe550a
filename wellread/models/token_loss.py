"""Cross-entropy over a vocabulary that needs no memory in addition to the logits.

For logits in bf16, torch's implementation saves the logits in fp32 and the log-probabilities, and in backward the
gradients of both. That is 16 bytes per token and vocabulary entry instead of 2, and slow, because it does not fit into
caches. Here only a few rows at a time are in fp32, forward saves nothing, and backward overwrites the logits with their
gradient, as in Liger-Kernel (Hsu et al. 2024, https://arxiv.org/abs/2410.10989). The results equal those of torch.

On a GPU that is still several kernels for each part, and fp32 copies of it. `one_pass_losses` lets torch.compile make
one kernel that reads the logits and one that overwrites them. Liger-Kernel 0.8.5 has losses of single tokens, too, but
its backward then copies the logits, and the host waits for the device in both passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch

from wellread.models.limits import SOFTMAX_AT_ONCE


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


def one_pass_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """As `token_losses`, by two kernels that torch.compile makes at their first use; only in training.

    Without compiling, as in `torch.compiler.set_stance`, all logits would be converted to fp32 at once.
    """
    losses: torch.Tensor = _OnePassLosses.apply(logits, labels)  # type: ignore[no-untyped-call]
    return losses


class _OnePassLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses: torch.Tensor
        losses, normalizers = _compiled(losses_of_rows)(logits, labels)
        ctx.save_for_backward(logits, labels, normalizers)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, labels, normalizers = ctx.saved_tensors
        _compiled(overwrite_rows)(logits, labels, normalizers, gradients[0])
        return logits, None


def losses_of_rows(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each label, and the logarithm of the sum of exponentials of each row; both (tokens,) float32."""
    rows = logits.float()
    normalizers = rows.logsumexp(1)
    return normalizers - rows.gather(1, labels[:, None])[:, 0], normalizers


def overwrite_rows(
    logits: torch.Tensor, labels: torch.Tensor, normalizers: torch.Tensor, gradient: torch.Tensor
) -> None:
    """Overwrite the logits with their gradient; `gradient` is that of the losses, (tokens,) float32."""
    probabilities = (logits.float() - normalizers[:, None]).exp()
    hits = torch.arange(logits.shape[1], device=logits.device) == labels[:, None]
    logits.copy_((probabilities - hits.float()) * gradient[:, None])


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled once for any number of tokens."""
    return torch.compile(function, dynamic=True)


def _parts(logits: torch.Tensor) -> Iterator[slice]:
    step = max(1, SOFTMAX_AT_ONCE["cpu" if logits.is_cpu else "cuda"] // logits.shape[1])
    return (slice(start, start + step) for start in range(0, len(logits), step))
