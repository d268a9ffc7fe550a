"""Fused attention of GPT-J, GPT-Neo and MPT: losses and gradients are those of transformers' attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.segments import batch, gradients
from support.small_models import tiny
from torch import nn

from wellread.models import fused
from wellread.models.families import FAMILIES
from wellread.models.loss import sample_losses


def with_fused(family: str, how: str = "training") -> nn.Module:
    model = tiny(family)
    fused.use(model)
    if how == "checkpointing":
        checkpointed: Any = model
        checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.eval() if how == "evaluation" else model.train()


@pytest.mark.parametrize("how", ["evaluation", "training", "checkpointing"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("family", fused.FUSED)
def test_losses_and_gradients_are_those_of_stored_scores(family: str, packed: bool, how: str) -> None:
    inputs = batch(packed=packed).inputs
    plain, model = tiny(family).train(), with_fused(family, how)
    expected, losses = sample_losses(plain, *inputs), sample_losses(model, *inputs)
    expected.sum().backward()
    losses.sum().backward()
    assert expected[[0, 2, 3]].min() > 5
    assert losses[1] == expected[1] == 0
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)
    of_plain, of_fused = gradients(plain), gradients(model)
    assert of_plain.keys() == of_fused.keys() == dict(plain.named_parameters()).keys()
    largest = max(float(gradient.abs().max()) for gradient in of_plain.values())
    for name, gradient in of_plain.items():
        assert float((of_fused[name] - gradient).abs().max()) <= 1e-6 * largest, name


@pytest.mark.parametrize("family", fused.FUSED)
def test_masks_of_padding(family: str) -> None:
    """transformers' masks of two dimensions, where padding may also be on the left; a mask of no padding is none."""
    tokens = batch(packed=True).tokens
    real = torch.ones_like(tokens)
    for row, (before, after) in enumerate(((0, 7), (5, 0), (3, 2), (0, 0))):
        real[row, :before], real[row, tokens.shape[1] - after :] = 0, 0
    plain, model = tiny(family), with_fused(family, "evaluation")
    for mask in (real, torch.ones_like(real)):
        with torch.no_grad():
            expected, logits = (
                each(input_ids=tokens, attention_mask=mask, use_cache=False).logits[mask.bool()]
                for each in (plain, model)
            )
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", fused.FUSED)
def test_generation_with_a_cache(family: str) -> None:
    prompt = batch(packed=True).tokens[:1, :9]
    texts = [
        each.generate(
            input_ids=prompt, max_new_tokens=12, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        for each in (tiny(family), with_fused(family, "evaluation"))
    ]
    assert torch.equal(texts[0].sequences, texts[1].sequences)
    for expected, logits in zip(texts[0].logits, texts[1].logits, strict=True):
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", fused.FUSED)
def test_only_a_window_and_packed_samples_need_a_mask(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attention, calls = fused.scaled_dot_product_attention, list[tuple[torch.Tensor | None, bool]]()

    def noted(q: Any, k: Any, v: Any, mask: Any, **settings: Any) -> torch.Tensor:
        calls.append((mask, settings["is_causal"]))
        return attention(q, k, v, mask, **settings)

    monkeypatch.setattr(fused, "scaled_dot_product_attention", noted)
    model = with_fused(family)
    sample_losses(model, *batch(packed=False).inputs)
    assert [(mask is None, causal) for mask, causal in calls] == [
        (True, True),
        (False, False) if family == "gpt_neo" else (True, True),
    ]
    sample_losses(model, *batch(packed=True).inputs)
    assert all(mask is not None and mask.shape[1] == 1 for mask, _ in calls[2:])  # not one per head


def test_layers_share_what_they_derive_from_a_mask() -> None:
    masks, mask, like = fused.Masks(), torch.zeros(1, 1, 3, 3, dtype=torch.bool), torch.zeros(1)
    first = masks.derive(fused._hiding, mask, 3, 3, like)
    assert masks.derive(fused._hiding, mask, 3, 3, like) is first
    assert masks.derive(fused._hiding, mask.clone(), 3, 3, like) is not first
    with torch.inference_mode():
        assert masks.derive(fused._hiding, mask, 3, 3, like.double()).dtype == torch.float64
    assert not masks.derive(fused._hiding, mask, 3, 3, like.double()).is_inference()


@pytest.mark.parametrize("heads", [4, 12])
def test_the_bias_of_mpt_in_bf16_is_exact_where_it_matters(heads: int) -> None:
    """At 2,048 positions one number in bf16 would be wrong by 1 or more."""
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    keys, size, scale = 2048, 16, 0.25
    bias = build_mpt_alibi_tensor(heads, keys)[:, 0]
    zeros = torch.zeros(1, heads, keys, size, dtype=torch.bfloat16)
    query, key, _ = fused._alibi(zeros, zeros, zeros, (bias[:, -1] - bias[:, -2]) / scale)
    scores = torch.einsum("hqd,hkd->hqk", query[0, :, :1].float(), key[0].float())[:, 0] * scale
    assert (scores - scores[:, -1:] - bias).abs().max() < 0.02
    rounded = bias.bfloat16().float()
    assert (rounded - bias).abs().max() >= 1


@pytest.mark.parametrize("family", fused.FUSED)
def test_autocast_and_bf16_weights(family: str) -> None:
    model, plain, inputs = with_fused(family), tiny(family).train(), batch(packed=True).inputs
    with torch.no_grad():
        expected = sample_losses(plain, *inputs)
        with torch.autocast("cpu", torch.bfloat16):
            computed = sample_losses(model, *inputs)
        in_bf16 = sample_losses(model.bfloat16(), *inputs)
    torch.testing.assert_close(computed, expected, rtol=0.02, atol=0)
    torch.testing.assert_close(in_bf16, expected, rtol=0.05, atol=0)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_layers_give_the_same_losses() -> None:
    from wellread.train.engines.compiling import compile_layers, compiled_graphs

    torch._dynamo.reset()
    model, plain, before = with_fused("gpt_neo"), with_fused("gpt_neo"), compiled_graphs()
    compile_layers(model, backend="aot_eager")
    for packed in (True, False):
        losses, expected = (sample_losses(each, *batch(packed=packed).inputs) for each in (model, plain))
        losses.sum().backward()
        torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-6)
    assert compiled_graphs() > before
    torch._dynamo.reset()


def test_other_models_and_other_choices_stay_as_they_are() -> None:
    model: Any = tiny("llama")
    fused.use(model)
    assert model.config._attn_implementation == "sdpa"
    flash: Any = tiny("gptj")
    flash.config._attn_implementation = "flash_attention_2"
    fused.use(flash)
    assert "_attn" not in vars(flash.transformer.h[0].attn)
    assert not set(fused.FUSED) - set(FAMILIES)
