"""Losses per sample compared with a simple float64 log-softmax over all logits, for all families."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.small_models import SIZES, VOCAB, tiny
from torch import nn

from wellread.corpus.batch import collate
from wellread.corpus.padding import padded
from wellread.corpus.read import Corpus
from wellread.models import loss, token_loss
from wellread.models.families import FAMILIES
from wellread.models.limits import SOFTMAX_AT_ONCE
from wellread.models.loss import sample_losses
from wellread.train.engines.compiling import compiled_graphs


def batch(lengths: tuple[int, ...] = (11, 7, 3), width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Random samples padded on the right; the first third of each is a prompt."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.zeros(len(lengths), width, dtype=torch.int64)
    targets = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randint(VOCAB, (length,), generator=generator)
        targets[row, max(1, length // 3) : length] = True
    return tokens, targets


def plain(model: nn.Module, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """One sample at a time, without padding, in float64."""
    sums = []
    for row, mask in zip(tokens, targets, strict=True):
        length = int(mask.nonzero().max()) + 1
        with torch.no_grad():
            logits = model(input_ids=row[None, :length], use_cache=False).logits[0].double()
        log_p = logits.log_softmax(-1)
        sums.append(-sum(float(log_p[t - 1, row[t]]) for t in range(1, length) if mask[t]))
    return torch.tensor(sums, dtype=torch.float64)


@pytest.mark.parametrize("family", SIZES)
def test_losses_are_those_of_log_softmax(family: str) -> None:
    model = tiny(family)
    tokens, targets = batch()
    with torch.no_grad():
        losses = sample_losses(model, tokens, targets)
    expected = plain(model, tokens, targets)
    assert losses.dtype == torch.float32
    assert expected.min() > 5  # several nats per token, so no loss is 0 by accident
    torch.testing.assert_close(losses.double(), expected, rtol=2e-5, atol=0)


def test_every_family_with_a_plain_head_is_tested() -> None:
    assert {name for name, family in FAMILIES.items() if family.plain_head} < set(SIZES)


@pytest.mark.parametrize("family", SIZES)
def test_padding_changes_nothing(family: str) -> None:
    """Losses depend neither on the width and content of the padding nor on other samples in the batch."""
    model = tiny(family)
    tokens, targets = batch()
    with torch.no_grad():
        losses = sample_losses(model, tokens, targets)
        wide, wide_targets = batch(width=40)
        filled = tokens.clone()
        for row, length in enumerate((11, 7, 3)):
            filled[row, length:] = 99
        single = torch.cat([sample_losses(model, tokens[i : i + 1], targets[i : i + 1]) for i in range(3)])
        for other in (sample_losses(model, wide, wide_targets), sample_losses(model, filled, targets), single):
            torch.testing.assert_close(other, losses, rtol=1e-5, atol=0)


def test_gradients_are_those_of_log_softmax() -> None:
    model = tiny("gpt_neox")
    tokens, targets = batch()
    sample_losses(model, tokens, targets).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    logits = model(input_ids=tokens[:, :-1]).logits.log_softmax(-1)
    picked = logits.gather(-1, tokens[:, 1:, None])[..., 0]
    (-(picked * targets[:, 1:]).sum()).backward()
    assert set(gradients) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-4)


def test_the_loss_of_a_sample_without_targets_is_0() -> None:
    model = tiny("gpt_neox")
    tokens, targets = batch()
    with torch.no_grad():
        complete = sample_losses(model, tokens, targets)
        targets[1] = False
        losses = sample_losses(model, tokens, targets)
        none = sample_losses(model, tokens, torch.zeros_like(targets))
    assert losses[1] == 0
    torch.testing.assert_close(losses[[0, 2]], complete[[0, 2]])
    assert none.tolist() == [0, 0, 0]


def test_the_loss_of_a_uniform_model_is_log_of_the_vocabulary_size() -> None:
    import math

    model = tiny("gpt_neox")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        tokens, targets = batch()
        losses = sample_losses(model, tokens, targets)
    assert losses.tolist() == pytest.approx([n * math.log(VOCAB) for n in (8, 5, 2)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_padding_change_nothing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """15 scored tokens take 16 rows of logits; losses and gradients are those of 15 rows."""
    model, (tokens, targets) = tiny("gpt_neox"), batch()
    rows = list[int]()
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    results = []
    for most in (lambda size, most: size, padded):
        monkeypatch.setattr(loss, "padded", most)
        model.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            losses = sample_losses(model, tokens, targets)
        (losses * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
        results.append([losses.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert rows == [15, 16]
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-6, atol=0)
    for without, with_padding in zip(*results, strict=True):
        torch.testing.assert_close(with_padding, without, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


def test_the_shapes_of_a_corpus_are_few(corpus: Corpus) -> None:
    """Batches of the sample corpus differ in width and in the number of scored tokens; the products' shapes do not."""
    model, shapes = tiny("gpt_neox"), set[tuple[int, ...]]()
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: shapes.add(tuple(inputs[0].shape)))
    ids, counts = np.random.default_rng(0).permutation(corpus.n_trainable)[:400].reshape(100, 4), set[int]()
    with torch.no_grad():
        for part in ids:
            read = collate(corpus, part)
            sample_losses(model, read.tokens % VOCAB, read.targets)
            counts.add(int(read.targets.sum()))
    assert len(counts) > 80
    assert len(shapes) <= 45
    assert all(rows % 8 == 0 for rows, _ in shapes)


# --- token losses that need no memory in addition to the logits ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_once", [1, 3 * 97, 1 << 21])
def test_losses_of_tokens_equal_those_of_torch(
    dtype: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses are bitwise equal, gradients within the precision of their dtype."""
    monkeypatch.setitem(SOFTMAX_AT_ONCE, "cpu", at_once)
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(11, 97, generator=generator) * 5).to(dtype)
    labels, weights = torch.randint(0, 97, (11,), generator=generator), torch.rand(11, generator=generator)
    inputs, reference = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    losses = token_loss.token_losses(inputs * 1, labels)
    expected = F.cross_entropy(reference.float(), labels, reduction="none")
    assert torch.equal(losses, expected)
    (losses * weights).sum().backward()
    (expected * weights).sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.dtype == dtype
    torch.testing.assert_close(inputs.grad, reference.grad, rtol=2**-8 if dtype == torch.bfloat16 else 1e-6, atol=1e-7)


def test_the_gradient_overwrites_the_logits() -> None:
    logits, saved_bytes, addresses = torch.randn(5, 97, requires_grad=True) * 1, list[int](), list[int]()

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved_bytes.append(tensor.nbytes if tensor.is_floating_point() else 0)
        return tensor

    logits.register_hook(lambda gradient: addresses.append(gradient.data_ptr()))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        token_loss.token_losses(logits, torch.arange(5)).sum().backward()
    assert sum(saved_bytes) == logits.nbytes
    assert addresses == [logits.data_ptr()]


def test_a_second_backward_is_an_error() -> None:
    """The first one has overwritten the logits with their gradient."""
    losses = token_loss.token_losses(torch.randn(5, 97, requires_grad=True) * 1, torch.arange(5)).sum()
    losses.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.backward()


def test_zero_tokens() -> None:
    logits = torch.randn(0, 97, requires_grad=True) * 1
    losses = token_loss.token_losses(logits, torch.empty(0, dtype=torch.int64))
    assert losses.shape == (0,)
    losses.sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float32, marks=pytest.mark.long)])
@pytest.mark.slow
def test_one_pass_losses_equal_float64(dtype: torch.dtype) -> None:
    """Compiled once for several numbers of tokens; the gradient overwrites the logits."""
    before = compiled_graphs()
    for count in (11, 40, 3):
        generator = torch.Generator().manual_seed(count)
        logits = (torch.randn(count, 997, generator=generator) * 8).to(dtype)
        labels, weights = torch.randint(0, 997, (count,), generator=generator), torch.rand(count, generator=generator)
        inputs, reference = logits.clone().requires_grad_(), logits.double().requires_grad_()
        overwritten = inputs * 1
        losses = token_loss.one_pass_losses(overwritten, labels)
        expected = F.cross_entropy(reference, labels, reduction="none")
        assert losses.dtype == torch.float32
        torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=2e-6)
        (losses * weights).sum().backward()
        (expected * weights).sum().backward()
        assert inputs.grad is not None
        assert inputs.grad.dtype == dtype
        rounding = 2**-8 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(inputs.grad.double(), reference.grad, rtol=rounding, atol=1e-8)
        assert torch.equal(overwritten, inputs.grad)
    assert compiled_graphs() - before == 2
