"""Packing: losses and gradients of segments are the same as if each segment were a separate sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.small_models import SIZES, VOCAB, tiny
from torch import nn

from wellread.models.families import PACKED_FAMILIES
from wellread.models.loss import isolation, sample_losses
from wellread.planning.parameters import packing_mask

LENGTHS = ((9, 1, 12, 5), (3, 2), (14,), (2, 13, 7))
"""Lengths of the segments of each packed sample; one is longer than GPT-Neo's window, one is a single token."""
WIDTH = 32
"""Length of packed samples; all are padded."""


def separate_segments() -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    """Packed sample, tokens and targets (no first token) of each segment."""
    generator = torch.Generator().manual_seed(1)
    result = []
    for row, lengths in enumerate(LENGTHS):
        for length in lengths:
            targets = torch.arange(length) >= max(1, length // 3)
            result.append((row, torch.randint(1, VOCAB, (length,), generator=generator), targets))
    return result


def packed(filler: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same segments packed into samples: tokens, targets, segments."""
    tokens = torch.full((len(LENGTHS), WIDTH), filler)
    targets = torch.zeros(len(LENGTHS), WIDTH, dtype=torch.bool)
    segments = torch.full((len(LENGTHS), WIDTH), -1)
    ends = [0] * len(LENGTHS)
    for number, (row, segment, scored) in enumerate(separate_segments()):
        place = slice(ends[row], ends[row] + len(segment))
        tokens[row, place], targets[row, place], segments[row, place] = segment, scored, number
        ends[row] = place.stop
    return tokens, targets, segments


def mode(model: nn.Module, how: str) -> nn.Module:
    """Set evaluation, training (no family here has dropout), or training with activation checkpointing."""
    if how == "checkpointing":
        checkpointed: Any = model
        checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.eval() if how == "evaluation" else model.train()


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    result = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return result


@pytest.mark.parametrize("how", ["evaluation", "training", "checkpointing"])
@pytest.mark.parametrize("family", PACKED_FAMILIES)
def test_a_packed_segment_gives_the_loss_and_gradient_of_a_separate_sample(family: str, how: str) -> None:
    model = mode(tiny(family), how)
    tokens, targets, segments = packed()
    separate = separate_segments()
    expected = [
        sample_losses(model, segment[None], scored[None])[0] if scored.any() else torch.zeros(())
        for _, segment, scored in separate
    ]
    torch.stack(expected).sum().backward()
    expected_gradients = gradients(model)
    sums = sample_losses(model, tokens, targets, segments)
    sums.sum().backward()
    packed_gradients = gradients(model)
    of_samples = torch.zeros(len(LENGTHS)).index_add(
        0, torch.tensor([row for row, _, _ in separate]), torch.stack(expected).detach()
    )
    torch.testing.assert_close(sums.detach(), of_samples, rtol=1e-5, atol=1e-5)
    for number, (row, _, _) in enumerate(separate):  # each segment of the packed sample
        with torch.no_grad():
            losses = sample_losses(model, tokens, targets & (segments == number), segments)
        torch.testing.assert_close(losses[row], expected[number].detach(), rtol=1e-5, atol=1e-5)
    assert expected_gradients.keys() == packed_gradients.keys() == dict(model.named_parameters()).keys()
    for name in expected_gradients:
        assert expected_gradients[name].abs().max() > 1e-3, name
        scale = float(expected_gradients[name].abs().max())
        torch.testing.assert_close(
            packed_gradients[name], expected_gradients[name], rtol=1e-5, atol=1e-5 * max(1.0, scale)
        )


@pytest.mark.parametrize("family", PACKED_FAMILIES)
def test_without_segments_they_would_attend_to_each_other(family: str) -> None:
    """Otherwise the test above would show nothing."""
    model = tiny(family)
    tokens, targets, segments = packed()
    with torch.no_grad():
        isolated, mixed = sample_losses(model, tokens, targets, segments), sample_losses(model, tokens, targets)
    assert (isolated - mixed)[[0, 1, 3]].abs().min() > 0.01
    assert isolated[2] == pytest.approx(float(mixed[2]), rel=1e-5)


@pytest.mark.parametrize("family", PACKED_FAMILIES)
def test_padding_of_packed_samples_changes_nothing(family: str) -> None:
    model = tiny(family)
    with torch.no_grad():
        losses, filled = (sample_losses(model, *packed(filler)) for filler in (0, 99))
        narrow = sample_losses(model, *(part[:, :28] for part in packed()))
    torch.testing.assert_close(filled, losses, rtol=1e-6, atol=0)
    torch.testing.assert_close(narrow, losses, rtol=1e-5, atol=0)


def test_the_mask_is_as_large_as_the_plan_says() -> None:
    segments = packed()[2]
    mask = isolation(tiny("llama"), segments)["attention_mask"]
    assert mask.nbytes == packing_mask("fp32", *segments.shape)
    assert (mask[1, 0, :6] == 0).long().tolist()[4][:6] == [0, 0, 0, 1, 1, 0]  # 3 tokens, then 2, then padding


def test_every_family_is_tested() -> None:
    assert set(PACKED_FAMILIES) <= set(SIZES)
