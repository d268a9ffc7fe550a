"""Variable-length attention: the tokens of all samples in one row, without padding and without a mask.

A row has segments (samples, or the segments of packed samples), and attention is causal within each. torch's kernel
for such rows takes the first token of each segment instead of a mask: its work is the sum of the squares of the
segments' lengths, where a mask costs the square of the row. On a CPU, which has no such kernel, fused attention runs on
one segment at a time. Linear layers, norms and the output embedding see only real tokens.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from wellread.errors import UserError
from wellread.models.families import VARLEN_FAMILIES
from wellread.models.loss import TokenLosses
from wellread.models.token_loss import token_losses

NAME = "wellread_varlen"
"""Name of this attention in transformers."""
CAUSAL = "wellread_causal"
"""Name of torch's fused attention where transformers makes no masks."""


def use(model: nn.Module) -> None:
    """Let a transformers model use variable-length attention where it reads rows (`flat_losses`).

    Elsewhere it uses fused attention as before.

    Raises
    ------
    UserError
        When the model has attention dropout, which the kernel does not have.
    """
    from transformers import AttentionInterface

    causal_lm = cast(Any, model)
    if getattr(causal_lm.config, "attention_dropout", 0):
        raise UserError(
            f"--fast: variable-length attention has no dropout, but the model's attention_dropout is "
            f"{causal_lm.config.attention_dropout:g}; leave out --fast on"
        )
    # No mask function has this name, so transformers computes no mask.
    AttentionInterface.register(NAME, attend)
    causal_lm.set_attn_implementation(NAME)


def without_masks(model: nn.Module) -> None:
    """Let a transformers model call fused attention without asking for a mask, where all its attention is causal.

    To find out that it needs no mask, transformers waits for the device in each forward pass. A mask that is passed to
    the model is used as before. A model of another family, or with its own choice of attention, stays as it is.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    causal_lm = cast(Any, model)
    if causal_lm.config.model_type in VARLEN_FAMILIES and causal_lm.config._attn_implementation == "sdpa":
        AttentionInterface.register(CAUSAL, sdpa_attention_forward)
        causal_lm.set_attn_implementation(CAUSAL)


def flat_losses(
    model: nn.Module,
    tokens: torch.Tensor,
    places: torch.Tensor,
    lengths: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    *,
    of_tokens: TokenLosses = token_losses,
) -> torch.Tensor:
    """Sum of negative log-likelihoods over the target tokens of each sample, in nats, as `sample_losses`.

    The host never waits for the device.

    Parameters
    ----------
    model : transformers causal language model with variable-length attention (`use`)
    tokens : (tokens,) int64, of one sample after the other
    places : (targets,) int64, places of the target tokens in the row; never the first token of a segment
    lengths : (samples,) int64
    starts : (segments + 1,) int32, first token of each segment, then the number of tokens
    longest : int
        At least the number of tokens of the longest segment.
    of_tokens : callable, optional
        Computes losses of tokens.

    Returns
    -------
    (samples,) float32
    """
    causal_lm = cast(Any, model)
    hidden = causal_lm.base_model(
        input_ids=tokens[None],
        position_ids=positions(starts, len(tokens))[None],
        use_cache=False,
        cu_seq_lens_q=starts,
        cu_seq_lens_k=starts,
        max_length_q=longest,
        max_length_k=longest,
    ).last_hidden_state[0]
    logits = causal_lm.get_output_embeddings()(hidden.index_select(0, places - 1))
    losses = of_tokens(logits, tokens.index_select(0, places))
    rows = torch.searchsorted(lengths.cumsum(0), places, right=True)
    return torch.zeros(len(lengths), dtype=losses.dtype, device=losses.device).index_add(0, rows, losses)


def positions(starts: torch.Tensor, count: int) -> torch.Tensor:
    """Place of each of `count` tokens in its segment, (count,) int64."""
    places = torch.arange(count, device=starts.device)
    begins = starts.long()
    return places - begins.index_select(0, torch.searchsorted(begins, places, right=True) - 1)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int = 0,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: by segments where it passes their bounds, otherwise fused attention.

    Parameters
    ----------
    query, key, value : (1, heads, tokens, size)

    Returns
    -------
    (1, tokens, heads, size), and None instead of weights
    """
    if cu_seq_lens_q is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **settings
        )
        return result
    # Rotary embedding may have left queries and keys in fp32 under autocast. torch 2.11 wants as many heads of keys as
    # of queries.
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    q, k, v = (part[0].transpose(0, 1).to(value.dtype).contiguous() for part in (query, key, value))
    by_segments = _on_gpu if query.is_cuda else _on_cpu
    return by_segments(q, k, v, cu_seq_lens_q, max_length_q, scaling)[None], None


def _on_gpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, longest: int, scale: float | None
) -> torch.Tensor:
    causal = (-1, 0)
    attended = varlen_attn(query, key, value, starts, starts, longest, longest, scale=scale, window_size=causal)
    return cast("torch.Tensor", attended)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the number of segments would be compiled into it
def _on_cpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, longest: int, scale: float | None
) -> torch.Tensor:
    """The reference: (tokens, heads, size) each."""
    sizes = starts.diff().tolist()
    parts = (torch.split(part.transpose(0, 1), sizes, dim=1) for part in (query, key, value))
    attended = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale) for q, k, v in zip(*parts, strict=True)
    ]
    return torch.cat(attended, dim=1).transpose(0, 1)
