"""Continuations of prompts by transformers' own `generate`, with cached keys and values: for evaluations.

`wellread.models.generate.greedy` is for training, where ranks share a model; its greedy texts are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wellread.models.configs import rope_limit
from wellread.models.families import KEYS

if TYPE_CHECKING:
    import torch
    from torch import nn


def continuations(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    end: int | None,
    seed: int | None = None,
    top_p: float = 1.0,
    device: torch.device | str = "cpu",
) -> list[list[int]]:
    """Continue prompts together: padded on the left, with positions that leave padding out.

    Parameters
    ----------
    model : transformers causal language model, in evaluation mode
    prompts : sequences of token ids, none empty
    new_tokens : int
        Maximum number of new tokens.
    end : int or None
        Token that ends a text; None: all texts have `new_tokens`.
    seed : int, optional
        Seed of random choices at temperature 1; the global generators are restored afterwards. None: greedy decoding.
    top_p : float
        Nucleus sampling: draw only from the most likely tokens with this total probability (Holtzman et al. 2020).

    Returns
    -------
    list of lists of token ids
        The continuation of each prompt; its last token is `end` if the model ended the text.
    """
    import torch
    from transformers import GenerationConfig

    width, padding = max(map(len, prompts)), 0 if end is None else end
    tokens = torch.full((len(prompts), width), padding, dtype=torch.int64)
    visible = torch.zeros((len(prompts), width), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.int64)
        visible[row, width - len(prompt) :] = 1
    chance: dict[str, Any] = {"do_sample": False}
    if seed is not None:
        chance = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": top_p}
    causal_lm: Any = model
    # The settings in a model's directory, such as a penalty for repetition, would otherwise complete these.
    causal_lm.generation_config = GenerationConfig(
        max_new_tokens=new_tokens, eos_token_id=end, pad_token_id=padding, use_cache=True, **chance
    )
    with torch.random.fork_rng(devices=_gpus(device)), torch.inference_mode():
        if seed is not None:
            torch.manual_seed(seed)
        rows = causal_lm.generate(tokens.to(device), attention_mask=visible.to(device))
    return [_up_to(end, row) for row in rows[:, width:].tolist()]


def positions(configuration: Any) -> int | None:
    """Most tokens of a text that a model with this configuration reads; None if it states no limit.

    Not more than its `rope_limit`: it would read a longer text, but the scores would depend on texts next to it.
    """
    limits = [getattr(configuration, key, None) for key in KEYS["positions"]]
    sizes = [next((int(limit) for limit in limits if limit), None), rope_limit(getattr(configuration, "__dict__", {}))]
    return min((size for size in sizes if size is not None), default=None)


def _up_to(end: int | None, row: list[int]) -> list[int]:
    return row[: row.index(end) + 1] if end in row else row


def _gpus(device: torch.device | str) -> list[int]:
    """The GPU whose random generator is used; none on a CPU."""
    import torch

    used = torch.device(device)
    return [used.index or 0] if used.type == "cuda" else []
