"""Limits on memory that the plan also uses for its estimate. Does not import torch."""

from collections.abc import Iterator

LOGITS_AT_ONCE = {"cpu": 1 << 21, "cuda": 1 << 24}
"""Number of logits that an evaluation computes at once."""

SOFTMAX_AT_ONCE = {"cpu": 1 << 19, "cuda": 1 << 24}
"""Number of logits that the loss converts to fp32 at once, in two copies: 4 MiB on a CPU, which fit the caches of its
cores, and 128 MiB on a GPU, which needs more parallel work."""

BLOCKED_TOKENS = 512
"""Longest sequence of blocked attention (`wellread.models.blocked`), which keeps the probabilities for backward."""
BLOCKED_ROWS = 128
"""Rows of a block: its scores for one head of a sample fit the caches of a core."""


def blocks(length: int) -> Iterator[tuple[int, int]]:
    """First row of each block of a sequence, and the row after its last."""
    return ((start, min(length, start + BLOCKED_ROWS)) for start in range(0, length, BLOCKED_ROWS))
