"""Norms of the gradients of single samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from wellread.errors import UserError
from wellread.models.score import in_parts

if TYPE_CHECKING:
    import torch
    from torch import nn

    from wellread.config import Dtype
    from wellread.corpus.batch import Samples


def gradient_norms(
    model: nn.Module,
    corpus: Samples,
    ids: NDArray[np.int64],
    *,
    part_tokens: int = 1 << 14,
    dtype: Dtype = "fp32",
    progress: Callable[[int], None] | None = None,
    device: str | None = None,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Yield the norm of the gradient of each sample's mean loss, in the order of `ids`, a part of them at a time.

    The norm is the 2-norm over all parameters together; tied parameters count once. Each sample has a backward pass of
    its own. The gradient of a parameter is freed as soon as its norm is known, so memory is that of the weights, the
    largest gradient and the activations of one sample.

    Parameters
    ----------
    model : transformers causal language model with all weights on one device, in evaluation mode
    ids : (n,) sample ids
    part_tokens : int
        Tokens per yielded part.
    dtype : str
        bf16: matrix products are in bf16, the gradients of weights in fp32.
    progress : callable, optional
        Called with the number of samples done so far.
    device : str, optional
        Device for the model's inputs (default: device of its first parameter).

    Yields
    ------
    ids : (part,) int64
    norms : (part,) float64
        In nats per target token; NaN for a sample without a target.

    Raises
    ------
    UserError
        When the weights are on several devices.
    """
    import torch

    places = {parameter.device for parameter in model.parameters()}
    if len(places) > 1 or torch.device("meta") in places:
        raise UserError(
            "gradients need all weights on one device, but the model is larger than its free memory; choose another "
            "with --device, or leave out gradnorm"
        )
    where, n_done = torch.device(device or next(iter(places))), 0
    for part in in_parts(corpus.lengths(ids), part_tokens):
        norms = np.full(len(ids[part]), np.nan)
        for place, sample_id in enumerate(ids[part]):
            with torch.autocast(where.type, torch.bfloat16, enabled=dtype == "bf16"):
                norms[place] = _norm(model, corpus, sample_id, where)
            n_done += 1
            if progress:
                progress(n_done)
        yield ids[part], norms


def _norm(model: nn.Module, corpus: Samples, sample_id: np.int64, device: torch.device) -> float:
    import torch

    from wellread.corpus.batch import collate
    from wellread.models.loss import sample_losses

    batch = collate(corpus, np.array([sample_id])).to(device)
    n_targets = int(batch.n_targets()[0])
    if not n_targets:
        return float("nan")
    with _squares(model) as squares:
        torch.autograd.backward(sample_losses(model, *batch.inputs).sum() / n_targets)
    return float(squares.sqrt())


@contextmanager
def _squares(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the sum of the squared gradients of the backward pass inside the block, () float64; frees each gradient."""
    import torch

    parameters = list(model.parameters())
    total = torch.zeros((), dtype=torch.float64, device=parameters[0].device)

    def add(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        total.add_(parameter.grad.norm().double().square())
        parameter.grad = None

    hooks = [cast(Any, each).register_post_accumulate_grad_hook(add) for each in parameters]
    try:
        yield total
    finally:
        for hook in hooks:
            hook.remove()
