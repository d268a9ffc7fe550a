"""torch.compile, layer by layer.

transformers leaves out the causal mask where it can pass ``is_causal`` to the attention kernel instead, but not while
torch compiles: a model that is compiled as a whole computes a mask of (samples, 1, length, length), with which the
fastest kernels do not run. Outside the layers, nothing is compiled, so the mask is left out; and all layers share one
compiled form.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

from wellread.errors import UserError

if TYPE_CHECKING:
    from torch import nn


def compile_layers(model: nn.Module, **settings: Any) -> None:
    """Compile each layer of a transformers model when it first runs; `settings` are those of torch.compile.

    Raises
    ------
    UserError
        When the family's layers are not known to transformers as layers.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        kind = cast(Any, model).config.model_type
        raise UserError(f"--compile on: transformers has no layers of its own kind for {kind}; leave it out")
    for layer in layers:
        layer.compile(**settings)


def compiled_graphs() -> int:
    """Number of graphs that torch has compiled in this process so far; 0 if its compiler was never imported."""
    utils = sys.modules.get("torch._dynamo.utils")
    return int(utils.counters["stats"]["unique_graphs"]) if utils else 0
