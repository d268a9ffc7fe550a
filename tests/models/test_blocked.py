"""Attention in blocks of rows: the values and gradients of exact attention, within the rounding of bf16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.small_models import SIZES, VOCAB, tiny
from torch import nn

from wellread.models import blocked
from wellread.models.blocked import attend
from wellread.models.families import BLOCKED_FAMILIES
from wellread.models.limits import BLOCKED_ROWS, BLOCKED_TOKENS
from wellread.models.loss import isolation, sample_losses

LENGTHS = (2, 33, BLOCKED_ROWS, BLOCKED_ROWS + 1, 3 * BLOCKED_ROWS - 5)
HEADS = {"one head each": (4, 4), "two heads per key": (4, 2), "all heads share keys": (3, 1)}
Tensors = tuple[torch.Tensor, ...]


class Module(nn.Module):
    """What transformers' own function asks of a layer."""

    def __init__(self, group: int = 1) -> None:
        super().__init__()
        self.num_key_value_groups = group


def tensors(heads: tuple[int, int], length: int, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    """Queries, keys and values as a layer has them, (batch, length, heads, size) in memory, and an output gradient."""
    generator = torch.Generator().manual_seed(length)
    counts = (heads[0], heads[1], heads[1], heads[0])
    q, k, v, upper = (torch.randn(2, length, count, 16, generator=generator).to(dtype) for count in counts)
    return (*(part.transpose(1, 2).requires_grad_() for part in (q, k, v)), upper)


def exact(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor, scale: float) -> Any:
    """Attention in float64, row by row as its formula says: softmax(q k / scale) v over visible places."""
    group = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(group, dim=1) for part in (key, value))
    scores = (query @ key.transpose(2, 3) * scale).masked_fill(~visible, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


def outcome(function: Any, parts: Tensors) -> Tensors:
    """Output, and gradients of queries, keys and values."""
    *inputs, upper = parts
    out = function(*inputs)
    return (out.detach(), *torch.autograd.grad(out, inputs, upper))


def error(values: Tensors, expected: Tensors) -> float:
    """Largest relative error of the four tensors, by their norms."""
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(values, expected, strict=True))


def doubled(parts: Tensors) -> Tensors:
    *inputs, upper = parts
    return (*(part.detach().double().requires_grad_() for part in inputs), upper.double())


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_values_and_gradients_are_those_of_exact_attention(heads: tuple[int, int], length: int) -> None:
    parts, module = tensors(heads, length), Module(heads[0] // heads[1])
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    actual = outcome(lambda q, k, v: attend(module, q, k, v, None, scaling=0.3)[0], parts)
    assert actual[0].shape == (2, length, heads[0], 16)
    assert [part.dtype for part in actual] == [torch.bfloat16] * 4
    # Rounding to bf16 has an error of up to 2^-9 = 0.2% for each tensor on the way: scores, probabilities, output.
    assert error(actual, outcome(lambda q, k, v: exact(q, k, v, visible, 0.3), doubled(parts))) < 0.01


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_segments_do_not_see_each_other(heads: tuple[int, int]) -> None:
    length = BLOCKED_ROWS + 40
    parts, module = tensors(heads, length), Module(heads[0] // heads[1])
    segments = torch.stack([(torch.arange(length) > 50).long() + (torch.arange(length) > end) for end in (60, 150)])
    visible = (segments[:, :, None] == segments[:, None]) & torch.ones(length, length, dtype=torch.bool).tril()
    mask = isolation(nn.Linear(1, 1, dtype=torch.bfloat16), segments)["attention_mask"]
    actual = outcome(lambda q, k, v: attend(module, q, k, v, mask, scaling=0.25)[0], parts)
    assert error(actual, outcome(lambda q, k, v: exact(q, k, v, visible[:, None], 0.25), doubled(parts))) < 0.01


def test_queries_and_keys_may_be_in_fp32() -> None:
    """Under autocast, rotary embedding leaves them so; values are in bf16."""
    q, k, v, _ = tensors((4, 2), 20)
    expected = attend(Module(2), q, k, v, None)[0]
    assert torch.equal(attend(Module(2), q.float(), k.float(), v, None)[0], expected)


@pytest.mark.parametrize(
    ("length", "dtype", "settings"),
    [
        (BLOCKED_TOKENS + 1, torch.bfloat16, {}),
        (20, torch.float32, {}),
        (20, torch.bfloat16, {"is_causal": False}),
        (1, torch.bfloat16, {}),
    ],
    ids=["long", "fp32", "not causal", "one token"],
)
def test_other_tensors_get_torchs_attention(length: int, dtype: torch.dtype, settings: dict[str, Any]) -> None:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    q, k, v, _ = tensors((4, 2), length, dtype)
    expected = sdpa_attention_forward(Module(2), q, k, v, None, **settings)[0]
    assert torch.equal(attend(Module(2), q, k, v, None, **settings)[0], expected)


# --- models ---


def with_blocks(family: str, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    model = tiny(family).train()
    blocked.use(model)
    return model


def losses_and_gradients(model: nn.Module, packed: bool, *, bf16: bool) -> Tensors:
    """Losses of four samples, and all gradients in one vector."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, VOCAB, (4, 200), generator=generator)
    targets, segments = torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens)
    segments[:, 70:] += 1
    segments[2, 150:] += 1
    begins = segments.diff(dim=1, prepend=segments[:, :1] - 1) != 0
    targets &= ~begins if packed else torch.arange(200) > 0
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        losses = sample_losses(model, tokens, targets, segments if packed else None)
    losses.sum().backward()
    return losses.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("packed", [False, True], ids=["samples", "packed"])
@pytest.mark.parametrize("family", BLOCKED_FAMILIES)
def test_losses_are_as_near_to_fp32_as_with_torchs_attention(
    family: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact_losses, exact_gradients = losses_and_gradients(tiny(family).train(), packed, bf16=False)
    usual_losses, other_gradients = losses_and_gradients(tiny(family).train(), packed, bf16=True)
    model = with_blocks(family, monkeypatch)
    assert model.config._attn_implementation == blocked.NAME  # type: ignore[union-attr]
    actual, gradients = losses_and_gradients(model, packed, bf16=True)
    assert (actual / exact_losses - 1).abs().max() < 0.004
    assert (actual / usual_losses - 1).abs().max() < 0.004
    off, usual = ((each - exact_gradients).norm() for each in (gradients, other_gradients))
    assert off < 1.5 * usual


@pytest.mark.parametrize("family", BLOCKED_FAMILIES)
def test_in_fp32_nothing_changes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = losses_and_gradients(tiny(family).train(), packed=True, bf16=False)
    for a, b in zip(losses_and_gradients(with_blocks(family, monkeypatch), True, bf16=False), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("family", sorted(set(SIZES) - set(BLOCKED_FAMILIES)))
def test_other_families_keep_their_attention(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config: Any = tiny(family).config
    model: Any = with_blocks(family, monkeypatch)
    assert model.config._attn_implementation == config._attn_implementation


def test_a_processor_without_bf16_products_keeps_torchs_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    model: Any = tiny("llama")
    blocked.use(model)
    assert model.config._attn_implementation == "sdpa"


def test_every_family_with_blocks_is_tested() -> None:
    assert set(BLOCKED_FAMILIES) <= set(SIZES)
