"""Losses per sample, from one forward pass, with logits only where a token is scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch
    from torch import nn

PLAIN_HEADS = ("gpt_neox", "gpt_neo", "gptj", "llama", "mpt")
"""Families whose logits are the output embedding applied to the last hidden state, and nothing else."""


def sample_losses(model: nn.Module, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum of negative log-likelihoods over the target tokens of each sample, in nats.

    Padding stands at the right, where a causal model cannot see it, so no attention mask is needed and the
    fastest attention is used. The vocabulary projection runs for scored positions alone.

    Parameters
    ----------
    model : transformers causal language model
    tokens : (batch, length) int64, padded at the right
    targets : (batch, length) bool, True where the token is scored; the first column is never True

    Returns
    -------
    (batch,) float32
    """
    import torch
    import torch.nn.functional as F

    inputs, scored = tokens[:, :-1], targets[:, 1:]
    logits = _logits(model, inputs, scored)
    losses = F.cross_entropy(logits.float(), tokens[:, 1:][scored], reduction="none")
    rows = torch.nonzero(scored)[:, 0]
    return torch.zeros(len(tokens), dtype=losses.dtype, device=losses.device).index_add(0, rows, losses)


def next_logits(model: nn.Module, tokens: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Logits of the token that follows each place where `last` is True, in order of rows.

    Parameters
    ----------
    tokens : (batch, length) int64, padded at the right
    last : (batch, length) bool

    Returns
    -------
    (places, vocabulary)
    """
    return _logits(model, tokens, last)


def _logits(model: nn.Module, inputs: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """Logits (scored tokens, vocabulary) that predict the tokens where `scored` is True."""
    causal_lm = cast(Any, model)
    if causal_lm.config.model_type not in PLAIN_HEADS:
        return cast("torch.Tensor", causal_lm(input_ids=inputs, use_cache=False).logits[scored])
    hidden = causal_lm.base_model(input_ids=inputs, use_cache=False).last_hidden_state
    return cast("torch.Tensor", causal_lm.get_output_embeddings()(hidden[scored]))
