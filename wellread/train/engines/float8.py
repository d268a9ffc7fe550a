"""Products of the layers in float8, by torchao.

A converted module keeps its weight, its name and its dtype; both factors of a product are rounded to float8 when it is
computed, in forward and in backward (https://arxiv.org/abs/2209.05433). Each row of a factor has its own scale: with
one scale for the whole tensor, the loss of a sample would depend on the largest number of the other samples in its
forward pass, and the record compares losses of samples. The scales are powers of two, so that a weight is rounded to
the same values in both passes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from wellread.config import packages
from wellread.errors import UserError
from wellread.planning.float8 import MULTIPLE, OLDER

if TYPE_CHECKING:
    from collections.abc import Collection

CAPABILITY = (8, 9)
"""The lowest compute capability with products in float8."""


def convert(model: nn.Module) -> None:
    """Convert the linear modules of `converted` in place.

    Raises
    ------
    UserError
        When torchao is not installed, the GPU computes no float8, or no module would be converted.
    """
    packages.require("torchao", "--float8")
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    names = converted(model)
    if not names:
        kind = cast(Any, model).config.model_type
        raise UserError(f"--float8: this {kind} has no linear module that it can convert; leave it out")
    device = next(model.parameters()).device
    if device.type == "cuda":
        _check_gpu(device)
    recipe = Float8LinearConfig.from_recipe_name("rowwise")
    # Products for the gradients of weights add over the tokens, of which there can be any number.
    recipe = replace(recipe, pad_inner_dim=True)
    convert_to_float8_training(model, module_filter_fn=lambda _, name: name in names, config=recipe)


def converted(model: nn.Module) -> Collection[str]:
    """Names of the linear modules whose products are in float8.

    Not the output embedding, nor what the kernels do not accept. torchao computes a gradient for every weight, so that
    a frozen one would only cost.
    """
    head = cast(Any, model).get_output_embeddings()
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and module.weight.requires_grad
        and not any(size % MULTIPLE for size in module.weight.shape)
    }


def _check_gpu(device: torch.device) -> None:
    gpu = torch.cuda.get_device_properties(device)
    if (gpu.major, gpu.minor) < CAPABILITY:
        raise UserError(f"--float8: {gpu.name} {OLDER}")
