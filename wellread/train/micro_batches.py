"""Divide a batch into micro-batches and ranks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.padding import padded
from wellread.planning.plan import Plan


def divide(lengths: NDArray[np.int64], plan: Plan, rank: int) -> list[NDArray[np.int64]]:
    """Slots of a batch that `rank` reads, one array per micro-batch.

    Samples of similar length share a micro-batch, and ranks that compute at the same time get similar lengths. This
    keeps padding and waiting low. It does not change which samples a batch contains.

    Parameters
    ----------
    lengths : (batch_size,) number of tokens of the sample in each slot
    """
    slots = np.argsort(-lengths, kind="stable").reshape(-1, plan.ranks)
    if "tokens" in plan.fast and plan.engine == "torch":  # DeepSpeed expects a fixed number of micro-batches
        ends = _by_tokens(lengths[slots[:, 0]], plan)
    else:
        ends = list(range(plan.micro_batch_size, len(slots) + 1, plan.micro_batch_size))
    return [slots[start:end, rank] for start, end in zip([0, *ends], ends, strict=False)]


def _by_tokens(lengths: NDArray[np.int64], plan: Plan) -> list[int]:
    """Ends of micro-batches that have at most the tokens of `micro_batch_size` samples of maximum length.

    All ranks have the same ends.

    Parameters
    ----------
    lengths : (batch_size / ranks,) lengths of the longest sample that a rank reads at each place, longest first
    """
    limit, device = plan.micro_batch_size * plan.seq_len, plan.machine.device
    flat = "varlen" in plan.fast
    ends, start, tokens = [], 0, 0
    for place, length in enumerate(lengths.tolist()):
        tokens = tokens + length if flat else padded(int(lengths[start]), plan.seq_len, device) * (place - start + 1)
        if place > start and tokens > limit:
            ends.append(place)
            start, tokens = place, length
    return [*ends, len(lengths)]
