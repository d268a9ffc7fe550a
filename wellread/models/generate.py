"""Text generation: continuing prompts with a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WIDTH = 64
"""Forward passes use multiples of this length: on a CPU, kernels are compiled and cached for each length."""
NextLogits = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""(tokens, last) -> logits after each position marked in `last`: `wellread.models.loss.next_logits` with a model."""


def greedy(
    next_logits: NextLogits,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    longest: int,
    end: int | None,
    device: torch.device | str = "cpu",
) -> list[list[int]]:
    """Continue prompts token by token, always with the most likely token. Random generators are not used or changed.

    All prompts share each forward pass. Padding is on the right, where a causal model does not attend to it, and each
    pass reads the text from its start. So positions are correct in all families, whatever texts are in the batch.
    There are exactly `new_tokens` passes, even if all texts end earlier: ranks that share a model stay synchronized.

    Parameters
    ----------
    prompts : sequences of token ids, none empty
    new_tokens : int
        Maximum number of new tokens.
    longest : int
        Maximum length of a text, including its prompt.
    end : int or None
        Token that ends a text.

    Returns
    -------
    list of lists of token ids
        The continuation of each prompt; its last token is `end` if the model ended the text.
    """
    import torch

    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    starts = lengths.clone()
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
        likeliest = next_logits(part, last).argmax(-1)
        tokens[rows[growing], lengths[growing]] = likeliest[growing]
        lengths += growing
        growing = growing & (lengths < longest) & (likeliest != (-1 if end is None else end))
    return [row[a:b].tolist() for row, a, b in zip(tokens, starts.tolist(), lengths.tolist(), strict=True)]
