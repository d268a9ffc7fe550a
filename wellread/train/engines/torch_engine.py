"""The torch engine: one process, or DDP."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wellread.config import RunConfig
from wellread.models.load import Source, check_4bit
from wellread.planning import host_memory
from wellread.train import heap, ranks
from wellread.train.engines.base import Write, count_trained, freeze, in_training
from wellread.train.engines.compiling import compile_layers
from wellread.train.engines.float8 import convert
from wellread.train.engines.masters import Masters
from wellread.train.engines.moments import OPTIMIZER_FILE, Moments
from wellread.train.engines.optim import make_optimizer
from wellread.train.engines.unpickling import restricted_loading
from wellread.train.engines.weights import Weights, fill

if TYPE_CHECKING:
    from wellread.corpus.batch import Batch, FlatBatch
    from wellread.planning.plan import Plan


class TorchEngine:
    """fp32 weights on every rank, bf16 by autocast, gradients averaged by DDP.

    With the fast path `bf16`, bf16 weights with fp32 masters instead, which also average the gradients.
    """

    def __init__(self, source: Source, config: RunConfig, plan: Plan) -> None:
        self.device = ranks.device()
        self._config, self._source = config, source
        if self.device.type == "cpu":
            heap.keep_freed()
        model = source.on_meta()
        self.parameters = sum(p.numel() for p in model.parameters())
        freeze(model, config.model.freeze)
        self.trained = count_trained(model)
        if config.model.load_in_4bit:
            check_4bit()
            model = source.in_4bit(self.device, config.model.dtype)
        else:
            fill(model, Weights(source, model), torch.float32, self.device)
        self._module = in_training(model.to(self.device), plan)
        if config.model.float8:
            convert(self._module.model)  # before the layers are compiled: the parameters stay the same objects
        if "compile" in plan.fast:
            compile_layers(self._module.model)
        self._masters = Masters(self._module) if "bf16" in plan.fast else None
        self._optimizer = make_optimizer(self._masters.module if self._masters else self._module, config.optim)
        self._parallel: nn.Module = self._module
        if plan.ranks > 1 and not self._masters:
            self._parallel = nn.parallel.DistributedDataParallel(
                self._module,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                init_sync=False,  # the ranks already have the same weights
                **_same_buffers(),
                gradient_as_bucket_view=True,  # else DDP stores all gradients twice
            )

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._masters or self._config.model.dtype != "bf16":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _inference(self) -> AbstractContextManager[Any]:
        # torchao's tensors with a scale per row cannot be reshaped in the inference mode of torch.
        return torch.no_grad() if self._config.model.float8 else torch.inference_mode()

    def forward_backward(self, batch: Batch | FlatBatch, scale: float, last: bool) -> torch.Tensor:
        """See `Engine`; ranks exchange gradients only with the last micro-batch."""
        ddp: Any = self._parallel
        if self._masters:
            self._masters.last = last
        quiet = isinstance(ddp, nn.parallel.DistributedDataParallel) and not last
        with ddp.no_sync() if quiet else nullcontext():
            with self._autocast():
                losses: torch.Tensor = ddp(*batch.inputs)
            torch.autograd.backward(losses.sum() * scale)
        return losses.detach()

    def evaluate(self, batch: Batch | FlatBatch) -> torch.Tensor:
        """See `Engine`."""
        self._module.eval()
        with self._inference(), self._autocast(), _as_written():
            losses: torch.Tensor = self._module(*batch.inputs)
        self._module.train()
        return losses

    def next_logits(self, tokens: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """See `Engine`."""
        self._module.eval()
        with self._inference(), self._autocast(), _as_written():
            logits: torch.Tensor = self._module(tokens, last, loss=False)
        self._module.train()
        return logits

    def step(self, lr: float) -> float:
        """See `Engine`."""
        return float(self.queue_step(lr))

    def queue_step(self, lr: float, bad: torch.Tensor | None = None) -> torch.Tensor:
        """As `step`, but the host does not wait: the device itself tests the norm, and `bad`.

        Parameters
        ----------
        bad : () bool, on the device, optional
            If it is true, the gradients are dropped.

        Returns
        -------
        () float32, on the device
            The norm.
        """
        clip = self._config.optim.clip or float("inf")
        if self._masters:
            self._masters.wait()
        norm = nn.utils.clip_grad_norm_((p for group in self._optimizer.param_groups for p in group["params"]), clip)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        optimizer: Any = self._optimizer
        dropped = ~norm.isfinite() if bad is None else bad | ~norm.isfinite()
        optimizer.found_inf = dropped.float()  # the fused AdamW then changes nothing, not even its step
        optimizer.step()
        if self._masters:
            self._masters.publish()
        self.drop()
        return norm

    def drop(self) -> None:
        """See `Engine`."""
        if self._masters:
            self._masters.wait()
        # DDP's gradients are views of its buckets: zeroed instead of removed, they are accumulated in place.
        self._optimizer.zero_grad(set_to_none=self._parallel is self._module)

    def save(self, directory: Path) -> None:
        """See `Engine`; the optimizer state contains no weights, those are in the model directory."""
        if ranks.rank() == 0:
            self._write(directory, self._weights(), self._optimizer.state_dict())

    def snapshot(self) -> Write | None:
        """See `Engine`; only rank 0 copies, but all ranks must know whether it could: they go on differently."""
        is_writer = ranks.rank() == 0
        weights, optimizer = (self._weights(), self._optimizer.state_dict()) if is_writer else ({}, {"state": {}})
        size = 2 * (_bytes(weights) + _bytes(optimizer["state"]))
        if not ranks.from_rank0(int(not is_writer or size <= host_memory.available())):
            return None
        if not is_writer:
            return lambda directory: None
        copies = _on_host(weights), _on_host(optimizer)
        return lambda directory: self._write(directory, *copies)

    def _weights(self) -> dict[str, torch.Tensor]:
        """Tensors to save in the model's directory, by their name in the module."""
        model = self._module.model
        values: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
        exact = self._masters.of if self._masters else (lambda value: value)
        return {name: exact(values[name]).detach() for name in self._source.saved_names(model)}

    def _write(self, directory: Path, weights: dict[str, torch.Tensor], optimizer: dict[str, Any]) -> None:
        self._source.write(self._module.model, directory / "model", weights.items())
        (directory / "state").mkdir()
        torch.save({"optimizer": optimizer, "names": self._names()}, directory / "state" / OPTIMIZER_FILE)

    def _names(self) -> list[str]:
        """Names of the parameters in the optimizer's order."""
        exact = self._masters.of if self._masters else (lambda parameter: parameter)
        names = {id(exact(parameter)): name for name, parameter in self._module.named_parameters()}
        return [names[id(p)] for group in self._optimizer.param_groups for p in group["params"]]

    def fits(self, state: Path) -> bool:
        """See `Engine`; fits any number of ranks."""
        return (state / OPTIMIZER_FILE).is_file()

    def load(self, state: Path, step: int) -> None:
        """See `Engine`; the saved state contains its step."""
        with restricted_loading(state):
            saved = torch.load(state / OPTIMIZER_FILE, map_location=self.device, weights_only=True)
        self._optimizer.load_state_dict(saved["optimizer"])

    def close(self) -> None:
        """See `Engine`."""

    def adopt(self, model: Path, moments: Moments, step: int) -> None:
        """See `Engine`."""
        parameters = dict(self._module.named_parameters())
        state = {}
        for number, name in enumerate(self._names()):
            first, second = (m.reshape(parameters[name].shape) for m in moments(name))
            state[number] = {"step": torch.tensor(float(step)), "exp_avg": first, "exp_avg_sq": second}
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": state})


def _as_written() -> AbstractContextManager[Any]:
    """Disable torch.compile: evaluation inputs have many lengths, and each would be compiled."""
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _bytes(value: Any) -> int:
    """Bytes of all tensors inside nested dicts and lists."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(_bytes(item) for item in items)


def _on_host(value: Any) -> Any:
    """Copy all tensors inside nested dicts and lists to host memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _on_host(item) for key, item in value.items()}
    return [_on_host(item) for item in value] if isinstance(value, list) else value


def _same_buffers() -> dict[str, Any]:
    """The setting of DDP that sends no buffers before a forward pass: none changes one. Its name has changed."""
    settings = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in settings else "broadcast_buffers": False}
