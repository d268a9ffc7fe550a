"""Compiling layer by layer: no mask is computed, attention keeps its causal form, and all layers share their graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.small_models import SIZES, VOCAB, tiny

from wellread.models.loss import sample_losses
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
