"""Causal attention in blocks of rows, for bf16 on a CPU.

torch's fused attention is slow there for sequences of a few hundred tokens, and its backward even more so. Here a block
of rows is one product with all keys before its end, a softmax, and a product with the values, so that half of the
square is never computed, and all products are those of oneDNN. Scores and probabilities are rounded to bf16, as in
transformers' eager attention; the softmax itself computes in fp32. The probabilities are kept for backward: memory that
grows with the square of the length, so long sequences keep torch's attention, which needs none.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import nn

from wellread.models.families import BLOCKED_FAMILIES
from wellread.models.limits import BLOCKED_TOKENS, blocks

NAME = "wellread_blocked"
"""Name of this attention in transformers."""


def use(model: nn.Module) -> None:
    """Let a transformers model use this attention where it suits the tensors, and otherwise torch's as before.

    A model of another family, or with its own choice of attention, stays as it is.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    causal_lm = cast(Any, model)
    # Without these instructions, torch computes products in bf16 one number at a time.
    onednn: Any = torch.backends.mkldnn
    fast: bool = onednn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if (
        causal_lm.config.model_type not in BLOCKED_FAMILIES
        or not fast
        or causal_lm.config._attn_implementation != "sdpa"
    ):
        return
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)  # the same masks, and none where attention is causal
    causal_lm.set_attn_implementation(NAME)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # its blocks would be unrolled into each compiled layer
def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it.

    Parameters
    ----------
    query : (batch, heads, length, size)
    key, value : (batch, key heads, length, size)
    attention_mask : (batch, 1, length, length), optional
        Added to the scores, and causal (`wellread.models.loss.isolation`).

    Returns
    -------
    (batch, length, heads, size), and None instead of weights
    """
    length = query.shape[2]
    additive = attention_mask is None or attention_mask.dtype == value.dtype
    suits = value.dtype == torch.bfloat16 and value.is_cpu and additive and not dropout and is_causal is not False
    if not suits or key.shape[2] != length or not 1 < length <= BLOCKED_TOKENS:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **settings
        )
        return result
    # Rotary embedding leaves queries and keys in fp32 under autocast.
    q, k, v = (part.to(torch.bfloat16, memory_format=torch.contiguous_format) for part in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attended: torch.Tensor = BlockedAttention.apply(q, k, v, attention_mask, scale)  # type: ignore[no-untyped-call]
    return attended, None


class BlockedAttention(torch.autograd.Function):
    """Queries of the heads that share keys are rows of one product: (batch x key heads, group x rows, size)."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """Attend; keep the probabilities of each block for the backward pass."""
        batch, heads, length, size = query.shape
        group = heads // key.shape[1]
        k, v = key.flatten(0, 1), value.flatten(0, 1)
        out, saved = query.new_empty(batch, length, heads, size), []
        for start, end in blocks(length):
            q = _rows(query, group, start, end)
            scores = torch.baddbmm(
                _added(mask, batch, heads, group, start, end), q, k[:, :end].transpose(1, 2), alpha=scale
            )
            probabilities = torch.softmax(scores, -1)
            saved.append(probabilities)
            rows = torch.bmm(probabilities, v[:, :end]).view(batch, heads, end - start, size)
            out[:, start:end] = rows.transpose(1, 2)
        ctx.save_for_backward(query, key, value, *saved)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of query, key and value; none of mask and scale."""
        query, key, value, *saved = ctx.saved_tensors
        (gradient,) = gradients
        batch, heads, length, size = query.shape
        group = heads // key.shape[1]
        q_gradient = torch.empty_like(query)
        k, v = key.flatten(0, 1), value.flatten(0, 1)
        # Several blocks are added up in fp32; they begin with the last, which has all keys.
        parts = list(zip(blocks(length), saved, strict=True))[::-1]
        k_gradient: torch.Tensor | None = None
        v_gradient: torch.Tensor | None = None
        for (start, end), probabilities in parts:
            q = _rows(query, group, start, end)
            upper = gradient[:, start:end].transpose(1, 2).reshape(len(k), -1, size)
            of_probabilities = torch.bmm(upper, v[:, :end].transpose(1, 2))
            of_scores = torch.ops.aten._softmax_backward_data(of_probabilities, probabilities, -1, torch.bfloat16)
            rows = torch.bmm(of_scores, k[:, :end]).mul_(ctx.scale)
            q_gradient[:, :, start:end] = rows.view(batch, heads, end - start, size)
            of_values, of_keys = torch.bmm(probabilities.mT, upper), torch.bmm(of_scores.mT, q)
            if k_gradient is None or v_gradient is None:
                one = len(parts) == 1
                k_gradient, v_gradient = (part if one else part.float() for part in (of_keys, of_values))
            else:
                k_gradient[:, :end] += of_keys
                v_gradient[:, :end] += of_values
        assert k_gradient is not None
        assert v_gradient is not None
        scaled = k_gradient.mul_(ctx.scale).to(key.dtype).view_as(key)
        return q_gradient, scaled, v_gradient.to(value.dtype).view_as(value), None, None


def _rows(query: torch.Tensor, group: int, start: int, end: int) -> torch.Tensor:
    """Rows of the queries: (batch x key heads, group x rows, size)."""
    batch, heads, _, size = query.shape
    return query[:, :, start:end].reshape(batch * heads // group, group * (end - start), size)


def _added(mask: torch.Tensor | None, batch: int, heads: int, group: int, start: int, end: int) -> torch.Tensor:
    """What is added to the scores of a block: (batch x key heads, group x rows, keys)."""
    shape = batch * heads // group, group * (end - start), end
    if mask is None:
        return _causal(end - start, end, group).expand(shape)
    return mask[:, :, start:end, :end].expand(batch, heads, end - start, end).reshape(shape)


@cache
def _causal(rows: int, keys: int, group: int) -> torch.Tensor:
    """Minus infinity for keys after each row, where the rows are the last: (group x rows, keys)."""
    with torch.inference_mode(False):  # kept for all later passes
        hidden = torch.full((rows, keys), float("-inf"), dtype=torch.bfloat16).triu(1 + keys - rows)
        return hidden.repeat(group, 1)
