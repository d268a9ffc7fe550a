"""Log-likelihoods of samples under a model, from which scores are computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

    from wellread.corpus.read import Corpus
    from wellread.corpus.segments import Segments


def log_likelihoods(
    model: nn.Module,
    corpus: Corpus | Segments,
    ids: NDArray[np.int64],
    *,
    max_tokens: int = 8192,
    progress: Callable[[int], None] | None = None,
    device: str | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Compute log-likelihoods of samples, with exactly the tokens that training reads.

    Parameters
    ----------
    model : transformers causal language model, in evaluation mode
    ids : (n,) sample ids
    max_tokens : int
        Padded tokens per forward pass.
    progress : callable, optional
        Called with the number of samples scored so far.
    device : str, optional
        Device for the model's inputs (default: device of its first parameter).

    Returns
    -------
    log_likelihood : (n,) float64
        Sum of log p over the target tokens of each sample, in nats.
    n_targets : (n,) int64
        Number of those tokens.
    """
    import torch

    from wellread.corpus.batch import collate
    from wellread.models.loss import sample_losses

    target_device = device or next(model.parameters()).device
    total, counts = np.zeros(len(ids)), np.zeros(len(ids), dtype=np.int64)
    n_scored = 0
    for places in _by_length(corpus.lengths(ids), max_tokens):
        batch = collate(corpus, ids[places]).to(target_device)
        with torch.inference_mode():
            losses = sample_losses(model, *batch.inputs)
        total[places] = -losses.double().cpu().numpy()
        counts[places] = batch.targets.sum(1).cpu().numpy()
        n_scored += len(places)
        if progress:
            progress(n_scored)
    return total, counts


def _by_length(lengths: NDArray[np.int64], max_tokens: int) -> list[NDArray[np.int64]]:
    """Split indices into groups of similar length; each has at most `max_tokens` tokens including padding."""
    groups: list[NDArray[np.int64]] = []
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        count = max(1, max_tokens // max(1, int(lengths[order[0]])))
        groups.append(order[:count])
        order = order[count:]
    return groups
