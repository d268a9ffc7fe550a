"""Fused attention for GPT-J, GPT-Neo and MPT, for which transformers has only attention that stores its scores.

The layers keep their weights; only what they compute between queries, keys, values and the output changes. Without
padding and packing no mask is made, so that kernels which need none are used. GPT-Neo does not scale its scores, and
every second of its layers attends only to a window. MPT adds a bias that grows with the position of the key (ALiBi:
Press et al. 2022, https://arxiv.org/abs/2108.12409); here it is a part of the product of queries and keys (`_alibi`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

NAME = "wellread_fused"
"""Name of this attention in transformers, which decides the masks that models make."""
COLUMNS = 8
"""Columns that MPT's bias adds to queries, keys and values: kernels need sizes of heads that are multiples of 8."""
FINE = 256
"""Integers up to this one are exact in bf16: the position of a key is a multiple of it and a remainder."""


def use(model: nn.Module) -> None:
    """Let a transformers model of these families use fused attention; any other model stays as it is."""
    from transformers import AttentionMaskInterface

    causal_lm = cast(Any, model)
    family = causal_lm.config.model_type
    if family not in FUSED or causal_lm.config._attn_implementation != "eager":
        return
    masks, (name, method, function) = Masks(), FUSED[family]
    attention = getattr(import_module(f"transformers.models.{family}.modeling_{family}"), name)
    for module in model.modules():
        if isinstance(module, attention):
            setattr(module, method, partial(function, module, masks))
    AttentionMaskInterface.register(NAME, _mask)
    causal_lm.config._attn_implementation = NAME


class Masks:
    """The mask that layers need instead of the one that their model passes to all of them: made once per pass."""

    def __init__(self) -> None:
        self._from: torch.Tensor | None = None
        self._key: tuple[Any, ...] = ()
        self._made: torch.Tensor | None = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # what it keeps would be compiled into each layer
    def derive(
        self, make: Callable[..., torch.Tensor], mask: torch.Tensor | None, rows: int, keys: int, like: torch.Tensor
    ) -> torch.Tensor:
        """``make(mask, rows, keys, like)``, or its last result if the arguments are the same."""
        key = (rows, keys, like.dtype, like.device)
        if self._made is None or self._from is not mask or self._key != key:
            with torch.inference_mode(mode=mask is not None and mask.is_inference()):  # training keeps it for backward
                self._made = make(mask, rows, keys, like)
            self._from, self._key = mask, key
        return self._made


def _mask(*arguments: Any, config: Any, **settings: Any) -> torch.Tensor | None:
    """The mask as transformers' fused attention wants it; for MPT, whose model changes its type, True hides a key, and
    none is an empty mask."""
    from transformers.masking_utils import sdpa_mask

    mask: torch.Tensor | None = sdpa_mask(*arguments, config=config, **settings)
    if config.model_type != "mpt":
        return mask
    return torch.empty(0, dtype=torch.bool) if mask is None else ~mask


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scale: float,
    dropout: float,
) -> torch.Tensor:
    """Attention of (batch, heads, rows, size), causal if there is no mask."""
    causal = mask is None and query.shape[2] > 1  # a single row is that of the last key
    q, k = query.to(value.dtype), key.to(value.dtype)
    if mask is not None and mask.is_floating_point():
        mask = mask.to(value.dtype)
    return scaled_dot_product_attention(q, k, value, mask, dropout_p=dropout, is_causal=causal, scale=scale)


def _probability(module: nn.Module, dropout: float) -> float:
    return dropout if module.training else 0.0


# --- GPT-J


def _gptj(
    module: Any,
    masks: Masks,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, None]:
    """``GPTJAttention._attn``."""
    dropout = _probability(module, module.attn_dropout.p)
    return _attend(query, key, value, attention_mask, scale=1 / module.scale_attn, dropout=dropout), None


# --- GPT-Neo


def _gpt_neo(
    module: Any,
    masks: Masks,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, None]:
    """``GPTNeoSelfAttention._attn``."""
    rows, keys, mask = query.shape[2], key.shape[2], attention_mask
    if module.attention_type == "local" and keys > module.config.window_size:
        mask = masks.derive(partial(_window, module.config.window_size), mask, rows, keys, value)
    return _attend(query, key, value, mask, scale=1.0, dropout=_probability(module, module.attn_dropout.p)), None


def _window(size: int, mask: torch.Tensor | None, rows: int, keys: int, like: torch.Tensor) -> torch.Tensor:
    """What is added to the scores so that a row sees only the last `size` keys: (batch or 1, 1, rows, keys)."""
    places = torch.arange(keys, device=like.device)
    distances = places[keys - rows :, None] - places
    hidden = ((distances < 0) | (distances >= size))[None, None]
    if mask is None:
        return _hiding(hidden, rows, keys, like)
    if mask.is_floating_point():
        return mask.to(like.dtype).masked_fill(hidden, torch.finfo(like.dtype).min)
    return _hiding(hidden | ~mask, rows, keys, like)


# --- MPT


def _mpt(
    module: Any,
    masks: Masks,
    hidden_states: torch.Tensor,
    position_bias: torch.Tensor,
    past_key_values: Any = None,
    attention_mask: torch.Tensor | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """``MptAttention.forward``."""
    shape = (*hidden_states.shape[:2], 3, module.n_heads, module.head_dim)
    mixed = module.Wqkv(hidden_states)
    if module.clip_qkv:
        mixed = mixed.clamp(min=-module.clip_qkv, max=module.clip_qkv)
    query, key, value = (part.transpose(1, 2) for part in mixed.view(shape).unbind(2))
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, module.layer_idx)
    rows, keys, mask = query.shape[2], key.shape[2], attention_mask
    mask = masks.derive(_hiding, mask, rows, keys, value) if mask is not None and mask.numel() else None
    scale = float(module.softmax_scale)
    slopes = position_bias[:, 0, -1] - position_bias[:, 0, -2]
    parts = _alibi(query, key, value, slopes / scale)
    attended = _attend(*parts, mask, scale=scale, dropout=_probability(module, module.attn_dropout_p))
    attended = attended[..., : module.head_dim].transpose(1, 2).reshape(*hidden_states.shape[:2], -1)
    return module.out_proj(attended), None


def _hiding(mask: torch.Tensor, rows: int, keys: int, like: torch.Tensor) -> torch.Tensor:
    """What is added to the scores so that keys where `mask` is True are hidden."""
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, torch.finfo(like.dtype).min)


def _alibi(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slopes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values with `COLUMNS` more columns, which add slope x position of the key to each score.

    The softmax is the same for positions that are counted from any key, so it is the same as with distances. In bf16,
    slope and position are sums of two numbers each, so that the bias has twice as many exact bits as one number: only
    the product, which kernels add up in fp32, has all of them.

    Parameters
    ----------
    query, key, value : (batch, heads, rows or keys, size)
    slopes : (heads,) float32, divided by the scale of the scores
    """
    places = torch.arange(key.shape[2], device=key.device)
    upper = slopes.to(value.dtype)
    lower = (slopes - upper).to(value.dtype)
    coarse, fine = (part.to(value.dtype) for part in (places // FINE * FINE, places % FINE))
    of_query, of_key = torch.stack([upper, upper, lower, lower], -1), torch.stack([coarse, fine, coarse, fine], -1)
    more_query = F.pad(of_query, (0, COLUMNS - 4))[None, :, None].expand(*query.shape[:3], COLUMNS)
    more_key = F.pad(of_key, (0, COLUMNS - 4)).expand(*key.shape[:3], COLUMNS)
    q, k = torch.cat([query.to(value.dtype), more_query], -1), torch.cat([key.to(value.dtype), more_key], -1)
    return q, k, F.pad(value, (0, COLUMNS))


FUSED: dict[str, tuple[str, str, Callable[..., tuple[torch.Tensor, None]]]] = {
    "gptj": ("GPTJAttention", "_attn", _gptj),
    "gpt_neo": ("GPTNeoSelfAttention", "_attn", _gpt_neo),
    "mpt": ("MptAttention", "forward", _mpt),
}
"""Family -> class of transformers, its method, and the function that replaces it; it gets the module and `Masks`."""
