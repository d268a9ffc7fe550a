"""bf16 weights with fp32 masters: the model computes in bf16, the optimizer updates fp32 copies of its weights.

Autocast converts every matrix from fp32 in each forward pass, and keeps norms and the residual in fp32. Here the model
has bf16 weights, which are rounded from the masters once per step (mixed precision as in Micikevicius et al. 2018,
https://arxiv.org/abs/1710.03740, section 3.1). Gradients of single micro-batches are in bf16, their sum is in fp32, in
the gradients of the masters; so is their mean over ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from wellread.train import ranks


class Masters:
    """The fp32 masters of a model's trained weights, and their gradients."""

    def __init__(self, model: nn.Module) -> None:
        """Convert the parameters of `model` to bf16 in place; buffers keep their dtype."""
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        for parameter in model.parameters():
            exact = parameter.data
            parameter.data = exact.to(torch.bfloat16)
            if parameter.requires_grad:
                self._pairs.append((parameter, nn.Parameter(exact)))
                parameter.register_post_accumulate_grad_hook(self._collect)  # type: ignore[no-untyped-call]
        self._of = {id(parameter): master for parameter, master in self._pairs}
        self.last = False
        """Whether the backward pass that runs is the last of its step: then ranks exchange gradients."""
        self._exchanges: list[Any] = []

    @property
    def module(self) -> nn.Module:
        """The masters as parameters, in the order of the model's."""
        return nn.ParameterList([master for _, master in self._pairs])

    def of(self, parameter: torch.Tensor) -> torch.Tensor:
        """The master of a parameter of the model; the parameter itself if it is not trained."""
        return self._of.get(id(parameter), parameter)

    def _collect(self, parameter: torch.Tensor) -> None:
        """Add the gradient of a micro-batch to that of the master; every rank calls it in the same order."""
        master, gradient = self._of[id(parameter)], parameter.grad
        assert gradient is not None
        if master.grad is None:
            master.grad = gradient.float()
        else:
            master.grad.add_(gradient)
        parameter.grad = None
        if self.last and ranks.world_size() > 1:
            self._exchanges.append(dist.all_reduce(master.grad.div_(ranks.world_size()), async_op=True))

    def wait(self) -> None:
        """Wait until the gradients of all ranks are averaged."""
        for exchange in self._exchanges:
            exchange.wait()
        self._exchanges.clear()

    def publish(self) -> None:
        """Round the masters to the model's weights."""
        with torch.no_grad():
            torch._foreach_copy_([parameter for parameter, _ in self._pairs], [master for _, master in self._pairs])
