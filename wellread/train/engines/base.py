"""The interface of engines, and functions that both engines use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import nn

from wellread.errors import UserError
from wellread.models import blocked, freezing, fused, varlen
from wellread.models.loss import next_logits, sample_losses
from wellread.models.token_loss import one_pass_losses, token_losses
from wellread.models.varlen import flat_losses
from wellread.train.engines.moments import Moments

if TYPE_CHECKING:
    from wellread.corpus.batch import Batch, FlatBatch
    from wellread.planning.plan import Plan


Write = Callable[[Path], None]
"""Writes a checkpoint's ``model/`` and ``state/`` into a directory."""


class Engine(Protocol):
    """Interface of an engine. All methods are collective: every rank calls them in the same order."""

    device: torch.device
    parameters: int
    """Number of parameters of the model."""
    trained: int
    """Number of parameters that are trained."""

    def forward_backward(self, batch: Batch | FlatBatch, scale: float, last: bool) -> torch.Tensor:
        """Run forward and backward of ``scale * sum of losses``; return each sample's summed loss, (samples,)."""

    def evaluate(self, batch: Batch | FlatBatch) -> torch.Tensor:
        """Each sample's summed loss, (samples,), without gradients."""

    def next_logits(self, tokens: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Logits of the token after each position marked in `last` (see `wellread.models.loss.next_logits`)."""

    def step(self, lr: float) -> float:
        """Update the weights; return the 2-norm of the gradient before clipping.

        If the norm is not finite, the gradients are dropped and the weights do not change.
        """

    def drop(self) -> None:
        """Drop the gradients of this step instead of updating the weights."""

    def save(self, directory: Path) -> None:
        """Write ``model/`` (Hugging Face layout, fp32 master weights) and ``state/`` (what resuming also needs)."""

    def snapshot(self) -> Write | None:
        """Copy what a checkpoint needs to host memory; return a function that rank 0 calls later to write it.

        None if every rank must take part in writing, or if the copy does not fit.
        """

    def fits(self, state: Path) -> bool:
        """Whether `load` can read this state: the same engine, number of ranks and stage saved it."""

    def load(self, state: Path, step: int) -> None:
        """Resume exactly from a state that fits, saved after `step` updates; the model already has its weights."""

    def close(self) -> None:
        """Remove temporary files of the engine."""

    def adopt(self, model: Path, moments: Moments, step: int) -> None:
        """Resume from the moments of a state that does not fit; the model has the weights of directory `model`."""


class LossModule(nn.Module):
    """A model together with its loss, so that hooks of DDP and ZeRO see one forward pass."""

    def __init__(self, model: nn.Module, *, one_pass: bool = False) -> None:
        super().__init__()
        self.model = model
        self._one_pass = one_pass
        """Whether losses of tokens come from compiled kernels in training (`one_pass_losses`)."""

    def forward(self, tokens: torch.Tensor, *more: Any, loss: bool = True) -> torch.Tensor:
        """Each sample's summed loss, (samples,) float32, from the inputs of a batch; or logits (`next_logits`)."""
        if not loss:
            return next_logits(self.model, tokens, *more)
        of_samples: Any = flat_losses if tokens.ndim == 1 else sample_losses
        of_tokens = one_pass_losses if self._one_pass and self.training else token_losses
        losses: torch.Tensor = of_samples(self.model, tokens, *more, of_tokens=of_tokens)
        return losses


def freeze(model: nn.Module, patterns: str | None) -> None:
    """Freeze the parameters with names that match one of the shell patterns, such as ``*.layers.[0-3].*``.

    Raises
    ------
    UserError
        When a pattern matches no parameter (lists the names of parameters, without layer numbers), or all match.
    """
    if not patterns:
        return
    frozen = freezing.frozen([name for name, _ in model.named_parameters()], patterns)
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)


def count_trained(model: nn.Module) -> int:
    """Number of parameters that are not frozen."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def in_training(model: nn.Module, plan: Plan) -> LossModule:
    """The model with its loss, in training mode, with activation checkpointing and variable-length attention if the
    plan has them. In bf16 on a CPU, attention runs in blocks. Families for which transformers stores scores get fused
    attention."""
    if "varlen" in plan.fast:
        varlen.use(model)
    elif plan.machine.device == "cpu" and plan.dtype == "bf16":
        blocked.use(model)
    elif "ahead" in plan.fast:
        varlen.without_masks(model)
    fused.use(model)
    if plan.activation_checkpointing:
        causal_lm = cast(Any, model)
        if not causal_lm.supports_gradient_checkpointing:
            kind = causal_lm.config.model_type
            raise UserError(f"--activation_checkpointing on: transformers has none for {kind}; choose off")
        # The reentrant kind needs inputs with gradients, and would call DDP's hooks twice.
        causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return LossModule(model, one_pass="loss" in plan.fast).train()
