"""Log-likelihoods of samples under a model, and of their tokens, from which scores are computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wellread.models.limits import LOGITS_AT_ONCE
from wellread.tokens import COLUMNS, Tokens

if TYPE_CHECKING:
    import torch
    from torch import nn

    from wellread.config import Dtype
    from wellread.corpus.batch import Samples

LOGITS_IN_CACHE = 1 << 18
"""Logits whose columns a CPU computes at once: 1 MiB in fp32, so that all steps stay in the caches of a core."""


def log_likelihoods(
    model: nn.Module,
    corpus: Samples,
    ids: NDArray[np.int64],
    *,
    max_tokens: int = 8192,
    device: str | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Compute log-likelihoods of samples, with exactly the tokens that training reads.

    Parameters
    ----------
    model : transformers causal language model, in evaluation mode
    ids : (n,) sample ids
    max_tokens : int
        Padded tokens per forward pass.
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
    for places in by_length(corpus.lengths(ids), max_tokens):
        batch = collate(corpus, ids[places]).to(target_device)
        with torch.inference_mode():
            losses = sample_losses(model, *batch.inputs)
        total[places] = -losses.double().cpu().numpy()
        counts[places] = batch.targets.sum(1).cpu().numpy()
    return total, counts


def score_tokens(
    model: nn.Module,
    corpus: Samples,
    ids: NDArray[np.int64],
    *,
    max_tokens: int = 8192,
    part_tokens: int = 1 << 17,
    dtype: Dtype = "fp32",
    progress: Callable[[int], None] | None = None,
    device: str | None = None,
) -> Iterator[Tokens]:
    """Yield the columns of the target tokens of samples, in the order of `ids`, a part of them at a time.

    Parameters
    ----------
    model : transformers causal language model, in evaluation mode
    ids : (n,) sample ids
    max_tokens : int
        Padded tokens per forward pass; fewer where a family computes all logits at once.
    part_tokens : int
        Tokens per yielded part, so that memory does not grow with the number of samples.
    dtype : str
        bf16: matrix products are in bf16. The columns are computed from fp32 logits in both cases.
    progress : callable, optional
        Called with the number of samples scored so far.
    device : str, optional
        Device for the model's inputs (default: device of its first parameter).
    """
    import torch

    target_device = torch.device(device or next(model.parameters()).device)
    lengths, limit, n_scored = corpus.lengths(ids), _tokens_at_once(model, max_tokens), 0
    for part in in_parts(lengths, part_tokens):
        batches = []
        for places in by_length(lengths[part], limit):
            members = ids[part][places]
            with torch.inference_mode(), torch.autocast(target_device.type, torch.bfloat16, enabled=dtype == "bf16"):
                batches.append(_score_batch(model, corpus, members, target_device))
            n_scored += len(places)
            if progress:
                progress(n_scored)
        yield Tokens.joined(batches).at(ids[part])


def in_parts(lengths: NDArray[np.int64], part_tokens: int) -> list[slice]:
    """Split samples into consecutive parts of at most `part_tokens` tokens, or of one sample."""
    parts, start, total = list[slice](), 0, 0
    for place, length in enumerate(lengths.tolist()):
        if place > start and total + length > part_tokens:
            parts.append(slice(start, place))
            start, total = place, 0
        total += length
    return [*parts, slice(start, len(lengths))] if len(lengths) else parts


def _tokens_at_once(model: nn.Module, max_tokens: int) -> int:
    """Padded tokens per forward pass; for a family that computes all logits at once, as many as may be in fp32."""
    from wellread.models.families import FAMILIES

    config: Any = model.config
    vocabulary: int = config.get_text_config().vocab_size
    family = FAMILIES.get(config.model_type)
    if family is not None and family.plain_head:
        return max_tokens
    device = "cpu" if next(model.parameters()).device.type == "cpu" else "cuda"
    return min(max_tokens, LOGITS_AT_ONCE[device] // vocabulary)


def _score_batch(model: nn.Module, corpus: Samples, ids: NDArray[np.int64], device: torch.device) -> Tokens:
    from wellread.corpus.batch import collate
    from wellread.models.loss import target_logits

    batch = collate(corpus, ids).to(device)
    parts = [token_columns(*part) for part in target_logits(model, *batch.inputs)]
    bounds = np.concatenate([[0], np.cumsum(batch.targets[:, 1:].sum(1).cpu().numpy())]).astype(np.int64)
    columns = {name: np.concatenate([np.zeros(0, kind), *(part[name].cpu().numpy() for part in parts)])
               for name, kind in COLUMNS.items()}  # fmt: skip
    return Tokens(sample_id=ids, bounds=bounds, **columns)


def token_columns(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The columns of `wellread.tokens.Tokens` for one slice of tokens.

    Parameters
    ----------
    logits : (tokens, vocabulary), floating point
    labels : (tokens,) int64

    Returns
    -------
    dict
        Name -> (tokens,); float32, for float64 logits float64, and `rank` int32.
    """
    import torch

    step = max(1, LOGITS_IN_CACHE // logits.shape[1]) if logits.is_cpu else max(1, len(logits))
    starts = range(0, max(1, len(logits)), step)
    parts = [_columns(logits[start : start + step], labels[start : start + step]) for start in starts]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _columns(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Columns of a few tokens, from differences to the highest logit.

    So the mean is exact, and the deviation 0, where all probabilities are equal.
    """
    import torch

    logits = logits if logits.dtype == torch.float64 else logits.float()
    of_label, highest = logits.gather(1, labels[:, None]), logits.amax(1, keepdim=True)
    work = torch.empty_like(logits)  # comparisons are counted as numbers: sums of booleans are slower
    rank = torch.gt(logits, of_label, out=work).sum(1)
    tied = torch.ge(logits, of_label, out=work).sum(1) - rank > 1  # rare, so that few rows are compared again
    rank = rank.int()
    if tied.any():
        lower_ids = torch.arange(logits.shape[1], device=logits.device) < labels[tied, None]
        rank[tied] += ((logits[tied] == of_label[tied]) & lower_ids).sum(1, dtype=torch.int32)
    shifted = torch.sub(logits, highest, out=work)
    top40, p = highest_values(shifted, 40).exp().sum(1), shifted.exp()
    total = p.sum(1)
    mean, log_total = torch.linalg.vecdot(p, shifted) / total, total.log()
    variance = torch.linalg.vecdot(p, shifted.sub_(mean[:, None]).square_()) / total
    return {
        "logp": (of_label - highest)[:, 0] - log_total,
        "rank": rank,
        "mu": mean - log_total,
        "sigma": variance.sqrt_(),
        "top40": (top40 / total).clamp_(max=1).log_(),
    }


def highest_values(values: torch.Tensor, k: int) -> torch.Tensor:
    """The k highest values of each row, or all if there are fewer, in any order; (rows, k).

    Values are divided into groups, and only the k groups with the highest maxima are searched: any other value has k
    values that are at least as high.

    Parameters
    ----------
    values : (rows, n), floating point
    """
    import torch

    n = values.shape[1]
    if n <= k:
        return values
    size = max(1, round(math.sqrt(n / k)))  # about as many groups as values in k of them
    groups = n // size
    grouped = values[:, : groups * size].reshape(len(values), size, groups)
    best = grouped.amax(1).topk(k, dim=1, sorted=False).indices
    candidates = grouped.gather(2, best[:, None].expand(-1, size, -1)).flatten(1)
    return torch.cat([candidates, values[:, groups * size :]], 1).topk(k, dim=1, sorted=False).values


def by_length(lengths: NDArray[np.int64], max_tokens: int) -> list[NDArray[np.int64]]:
    """Split indices into groups of similar length; each has at most `max_tokens` tokens including padding."""
    groups: list[NDArray[np.int64]] = []
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        count = max(1, max_tokens // max(1, int(lengths[order[0]])))
        groups.append(order[:count])
        order = order[count:]
    return groups
