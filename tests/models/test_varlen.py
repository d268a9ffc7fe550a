"""Variable-length attention: rows of real tokens give the losses and gradients of padded samples, packed or not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.segments import SEGMENTS, batch, gradients
from support.small_models import SIZES, tiny
from torch import nn

from wellread.errors import UserError
from wellread.models import varlen
from wellread.models.families import VARLEN_FAMILIES
from wellread.models.loss import sample_losses
from wellread.models.varlen import flat_losses, positions


def with_varlen(family: str, how: str = "training") -> nn.Module:
    model = tiny(family)
    varlen.use(model)
    if how == "checkpointing":
        checkpointed: Any = model
        checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.eval() if how == "evaluation" else model.train()


@pytest.mark.parametrize("how", ["evaluation", "training", "checkpointing"])
@pytest.mark.parametrize("packed", [False, True], ids=["samples", "packed"])
@pytest.mark.parametrize("family", VARLEN_FAMILIES)
def test_losses_and_gradients_are_those_of_padded_samples(family: str, packed: bool, how: str) -> None:
    padded, plain, model = batch(packed=packed), tiny(family).train(), with_varlen(family, how)
    expected = sample_losses(plain, *padded.inputs)
    expected.sum().backward()
    losses = flat_losses(model, *padded.flat().inputs)  # type: ignore[arg-type]
    losses.sum().backward()
    assert expected[[0, 2, 3]].min() > 5
    assert losses[1] == expected[1] == 0
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-6)
    of_plain, of_flat = gradients(plain), gradients(model)
    assert of_plain.keys() == of_flat.keys() == dict(plain.named_parameters()).keys()
    for name, gradient in of_plain.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(of_flat[name], gradient, rtol=1e-5, atol=1e-5 * max(1.0, scale))


@pytest.mark.parametrize("family", VARLEN_FAMILIES)
def test_segments_do_not_attend_to_each_other(family: str) -> None:
    """Otherwise the test above would show nothing."""
    padded, model = batch(packed=True), with_varlen(family)
    single = replace(padded.flat(), starts=batch(packed=False).flat().starts)
    with torch.no_grad():
        isolated, mixed = (flat_losses(model, *each.inputs) for each in (padded.flat(), single))  # type: ignore[arg-type]
    assert (isolated - mixed)[[0, 3]].abs().min() > 0.01
    assert isolated[2] == pytest.approx(float(mixed[2]), rel=1e-6)


@pytest.mark.parametrize("family", VARLEN_FAMILIES)
def test_padded_samples_are_computed_as_before(family: str) -> None:
    """Evaluation and generation read padded samples with the same model; a packed one still gets its mask."""
    model, plain = with_varlen(family), tiny(family).train()
    for packed in (False, True):
        with torch.no_grad():
            computed, expected = (sample_losses(each, *batch(packed=packed).inputs) for each in (model, plain))
        assert torch.equal(computed, expected)


@pytest.mark.parametrize("family", VARLEN_FAMILIES)
def test_no_mask_is_made(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attention, calls = varlen.scaled_dot_product_attention, list[Any]()

    def noted(*tensors: torch.Tensor, **settings: Any) -> torch.Tensor:
        calls.append((tensors[0].shape[1], settings))
        return attention(*tensors, **settings)

    monkeypatch.setattr(varlen, "scaled_dot_product_attention", noted)
    with torch.no_grad():
        flat_losses(with_varlen(family), *batch(packed=True).flat().inputs)  # type: ignore[arg-type]
    sizes = [size for each in SEGMENTS for size in each]
    assert [size for size, _ in calls] == 2 * sizes  # two layers
    assert all(settings["is_causal"] and "attn_mask" not in settings for _, settings in calls)


def test_bf16_weights_and_autocast() -> None:
    padded, model, plain = batch(packed=True), with_varlen("llama"), tiny("llama").train()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        computed, expected = flat_losses(model, *padded.flat().inputs), sample_losses(plain, *padded.inputs)  # type: ignore[arg-type]
    torch.testing.assert_close(computed, expected, rtol=0.02, atol=0)
    with torch.no_grad():
        computed = flat_losses(model.bfloat16(), *padded.flat().inputs)  # type: ignore[arg-type]
    assert computed.dtype == torch.float32
    torch.testing.assert_close(computed, expected, rtol=0.05, atol=0)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("family", VARLEN_FAMILIES)
def test_compiled_layers_give_the_same_losses(family: str) -> None:
    from wellread.train.engines.compiling import compile_layers, compiled_graphs

    torch._dynamo.reset()
    model, plain, before = with_varlen(family), with_varlen(family), compiled_graphs()
    compile_layers(model, backend="aot_eager")
    for packed in (True, False):
        flat = batch(packed=packed).flat()
        losses, expected = (flat_losses(each, *flat.inputs) for each in (model, plain))  # type: ignore[arg-type]
        losses.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-6)
    assert compiled_graphs() > before
    torch._dynamo.reset()


def test_positions_start_at_0_in_each_segment() -> None:
    assert positions(torch.tensor([0, 3, 4, 6], dtype=torch.int32), 6).tolist() == [0, 1, 2, 0, 0, 1]


def test_a_model_with_attention_dropout_is_refused() -> None:
    model: Any = tiny("llama")
    model.config.attention_dropout = 0.1
    with pytest.raises(UserError, match=r"no dropout, but the model's attention_dropout is 0.1"):
        varlen.use(model)


def test_every_family_is_tested() -> None:
    assert set(VARLEN_FAMILIES) <= set(SIZES)


# --- rows and their digests ---


@pytest.mark.parametrize("packed", [False, True], ids=["samples", "packed"])
def test_rows_have_the_digests_and_counts_of_padded_samples(packed: bool) -> None:
    padded = batch(packed=packed)
    flat = padded.flat()
    assert flat.digests() == padded.digests()
    assert flat.n_targets().tolist() == padded.n_targets().tolist() == padded.targets.sum(1).tolist()
    assert flat.width.tolist() == padded.lengths.tolist()
    assert len(flat.tokens) == int(padded.lengths.sum())
    assert flat.longest == 256
    assert flat.starts.dtype == torch.int32
    sizes = [size for each in SEGMENTS for size in (each if packed else (sum(each),))]
    assert flat.starts.tolist() == [0, *np.cumsum(sizes)]


def test_a_digest_is_of_the_tensors_that_enter_the_model() -> None:
    flat = batch(packed=True).flat()
    before = flat.digests()
    flat.tokens[3] += 1
    assert [a == b for a, b in zip(before, flat.digests(), strict=True)] == [False, True, True, True]
    flat.tokens[3] -= 1
    flat.starts[-2] += 1  # of the last sample's last segment
    assert [a == b for a, b in zip(before, flat.digests(), strict=True)] == [True, True, True, False]
    flat.starts[-2] -= 1
    flat.places[0] -= 1
    assert [a == b for a, b in zip(before, flat.digests(), strict=True)] == [False, True, True, True]
