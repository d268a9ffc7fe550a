"""Compiling layer by layer: no mask is computed, attention keeps its causal form, and all layers share their graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.engine_ranks import plan_of
from support.small_models import SIZES, VOCAB, tiny

from wellread.corpus.batch import Batch
from wellread.models import token_loss
from wellread.models.loss import sample_losses
from wellread.train.engines.base import in_training
from wellread.train.engines.compiling import compile_layers, compiled_graphs

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
"""torch's compiler itself looks at it."""
ATTENTION = "scaled_dot_product_attention"


class Recorder:
    """A backend of torch.compile that runs the graph as it is, and keeps it."""

    def __init__(self) -> None:
        self.graphs: list[Any] = []

    def __call__(self, graph: Any, _: Any) -> Any:
        self.graphs.append(graph)
        return graph.forward

    def attention(self) -> list[dict[str, Any]]:
        """Mask and is_causal of each call of attention in the graphs."""
        calls = [node for graph in self.graphs for node in graph.graph.nodes if ATTENTION in str(node.target)]
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        return [dict(zip(names, call.args, strict=False)) | call.kwargs for call in calls]

    def largest_inputs(self) -> int:
        """Most axes of an input of a graph; a mask has four."""
        inputs = (node for graph in self.graphs for node in graph.graph.nodes if node.op == "placeholder")
        values = (node.meta.get("example_value") for node in inputs)
        return max(value.ndim for value in values if torch.is_tensor(value))


def losses(model: torch.nn.Module, widths: tuple[int, ...]) -> list[torch.Tensor]:
    computed = []
    for width in widths:
        tokens = torch.arange(2 * width).view(2, width) % VOCAB
        targets = torch.ones_like(tokens, dtype=torch.bool)
        targets[:, 0] = False
        with torch.autocast("cpu", torch.bfloat16):
            each = sample_losses(model, tokens, targets)
        each.sum().backward()
        computed.append(each.detach())
    return computed


@pytest.fixture(autouse=True)
def fresh_compiler() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_no_mask_is_computed_and_attention_is_causal(family: str) -> None:
    recorder, model, before = Recorder(), tiny(family).train(), compiled_graphs()
    compile_layers(model, backend=recorder)
    losses(model, (33, 41, 49, 57))
    assert len(recorder.graphs) == 2  # one for the first width, one for all others; the two layers share them
    assert compiled_graphs() - before == 2
    calls = recorder.attention()
    assert len(calls) == 2
    for call in calls:
        assert call["attn_mask"] is None
        assert call["is_causal"] is True
    assert recorder.largest_inputs() <= 3


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_a_model_compiled_as_a_whole_computes_a_mask(family: str) -> None:
    """Otherwise the test above would show nothing."""
    recorder, model = Recorder(), tiny(family).train()
    model.base_model.compile(backend=recorder)  # type: ignore[operator, union-attr]
    losses(model, (33, 41))
    assert any(call["attn_mask"] is not None for call in recorder.attention())


@pytest.mark.parametrize("family", SIZES)
def test_every_family_has_layers_and_equal_losses(family: str) -> None:
    expected = losses(tiny(family).train(), (33, 41))
    model = tiny(family).train()
    compile_layers(model, backend=Recorder())
    for computed, plain in zip(losses(model, (33, 41)), expected, strict=True):
        torch.testing.assert_close(computed, plain, rtol=1e-6, atol=0)


@pytest.mark.parametrize("rows", [False, True], ids=["samples", "rows"])
def test_a_plan_with_the_path_loss_uses_it_only_in_training(rows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(token_loss, "_compiled", lambda function: calls.append(function.__name__) or function)
    tokens = torch.arange(48).view(3, 16) % VOCAB
    targets = torch.ones_like(tokens, dtype=torch.bool)
    targets[:, 0] = False
    batch: Any = Batch(torch.arange(3), torch.full((3,), 16), tokens, targets)
    batch = batch.flat() if rows else batch
    computed = []
    for paths in ([], ["loss"]):
        plan = plan_of({"strategy": "ddp", "dtype": "fp32", "plan": {"fast": paths + ["varlen"] * rows}}, 1)
        module = in_training(tiny("gpt_neox"), plan)
        each = module(*batch.inputs)
        each.sum().backward()
        gradients = [parameter.grad for parameter in module.parameters()]
        computed.append([each.detach(), *gradients])
        assert calls == ["losses_of_rows", "overwrite_rows"] * bool(paths)
        torch.testing.assert_close(module.eval()(*batch.inputs).detach(), each.detach(), rtol=1e-6, atol=0)
    assert calls == ["losses_of_rows", "overwrite_rows"]
    for usual, fast in zip(*computed, strict=True):
        torch.testing.assert_close(fast, usual, rtol=1e-5, atol=1e-6)
