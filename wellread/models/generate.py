"""Text that a model writes after prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WIDTH = 64
"""Passes are as wide as a multiple of so many tokens: a CPU's kernels are compiled for each width, and kept."""
NextLogits = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""(tokens, last) -> logits after each place marked in `last`: `wellread.models.loss.next_logits` with a model."""


def greedy(
    next_logits: NextLogits,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    longest: int,
    end: int | None,
    device: torch.device | str = "cpu",
) -> list[list[int]]:
    """Continue prompts with the most likely token, one after the other. No randomness is used or disturbed.

    All prompts share each forward pass. Padding stands at the right, where a causal model cannot see it, and every
    pass reads the text from its start: so positions are right in every family, whatever a text is batched with. There
    are exactly `new_tokens` passes, however early the texts end: ranks that divide a model stay together.

    Parameters
    ----------
    prompts : sequences of token ids, none empty
    new_tokens : int
        Most tokens that each is continued with.
    longest : int
        Tokens, prompt included, beyond which none grows.
    end : int or None
        Token that ends a text.

    Returns
    -------
    list of lists of token ids
        The continuation of each prompt, with `end` as its last token when it ended by itself.
    """
    import torch

    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    begun = lengths.clone()
    most = max(int(lengths.max()), longest)
    tokens = torch.zeros((len(prompts), int(lengths.max()) + new_tokens + WIDTH), dtype=torch.int64, device=device)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.as_tensor(prompt, dtype=torch.int64)
    growing = lengths < longest
    for _ in range(new_tokens):
        part = tokens[:, : min(-(-int(lengths.max()) // WIDTH) * WIDTH, most)]
        last = torch.zeros_like(part, dtype=torch.bool)
        rows = torch.arange(len(prompts), device=device)
        last[rows, lengths - 1] = True
        chosen = next_logits(part, last).argmax(-1)
        tokens[rows[growing], lengths[growing]] = chosen[growing]
        lengths += growing
        growing = growing & (lengths < longest) & (chosen != (-1 if end is None else end))
    return [row[a:b].tolist() for row, a, b in zip(tokens, begun.tolist(), lengths.tolist(), strict=True)]
