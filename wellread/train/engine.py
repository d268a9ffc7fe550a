"""The two engines behind the loop: plain torch (one process or DDP), and DeepSpeed ZeRO."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psutil
import torch
from torch import nn

from wellread.config import CONFIGS, RunConfig
from wellread.models.loss import sample_losses
from wellread.train import ranks
from wellread.train.moments import OPTIMIZER_FILE, ZERO, Moments
from wellread.train.optim import make_optimizer, replay_beta_powers

if TYPE_CHECKING:
    from wellread.data.batch import Batch
    from wellread.plan import Plan


Write = Callable[[Path], None]
"""Writes a checkpoint's ``model/`` and ``state/`` into a directory."""

STRATEGY_FILE = "strategy.json"
"""Beside a ZeRO state: what it fits."""


class Engine(Protocol):
    """What the loop asks of an engine. All methods are collective: every rank calls them in the same order."""

    device: torch.device

    def forward_backward(self, batch: Batch, scale: float, last: bool) -> torch.Tensor:
        """Run forward and backward of ``scale * sum of losses``; return each sample's summed loss, (samples,)."""

    def evaluate(self, batch: Batch) -> torch.Tensor:
        """Each sample's summed loss, (samples,), without gradients."""

    def step(self, lr: float) -> float:
        """Update the weights; return the 2-norm of the gradient before clipping."""

    def save(self, directory: Path) -> None:
        """Write ``model/`` (Hugging Face layout, fp32 master weights) and ``state/`` (what resuming needs beyond)."""

    def snapshot(self) -> Write | None:
        """Copy what a checkpoint needs to host memory; return what writes it later, on rank 0 and without the others.

        None when every rank has to take part in writing, or when the copy would not fit.
        """

    def fits(self, state: Path) -> bool:
        """Whether `load` can read this state: it was saved by the same engine, for as many ranks and the same stage."""

    def load(self, state: Path, step: int) -> None:
        """Continue exactly from a state that fits; the model already has the checkpoint's weights."""

    def adopt(self, model: Path, moments: Moments, step: int) -> None:
        """Continue from the moments of a state that does not fit, and the weights in directory `model`."""


class LossModule(nn.Module):
    """The model with its loss, so that hooks of DDP and ZeRO see one forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Each sample's summed loss, (samples,) float32."""
        return sample_losses(self.model, tokens, targets)


def make_engine(model: nn.Module, config: RunConfig, plan: Plan) -> Engine:
    """Build the engine that the plan chose."""
    return DeepSpeedEngine(model, config, plan) if plan.engine == "deepspeed" else TorchEngine(model, config, plan)


class TorchEngine:
    """fp32 weights on every rank, bf16 by autocast, gradients averaged by DDP."""

    def __init__(self, model: nn.Module, config: RunConfig, plan: Plan) -> None:
        self.device = ranks.device()
        self._config = config
        self._module = LossModule(model.to(self.device)).train()
        self._optimizer = make_optimizer(self._module, config.optim)
        self._parallel: nn.Module = self._module
        if plan.ranks > 1:
            self._parallel = nn.parallel.DistributedDataParallel(
                self._module, device_ids=[self.device.index] if self.device.type == "cuda" else None
            )

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._config.dtype == "bf16" else nullcontext()

    def forward_backward(self, batch: Batch, scale: float, last: bool) -> torch.Tensor:
        """See `Engine`; gradients travel between ranks with the last micro-batch alone."""
        ddp: Any = self._parallel
        quiet = isinstance(ddp, nn.parallel.DistributedDataParallel) and not last
        with ddp.no_sync() if quiet else nullcontext():
            with self._autocast():
                losses: torch.Tensor = ddp(batch.tokens, batch.targets)
            torch.autograd.backward(losses.sum() * scale)
        return losses.detach()

    def evaluate(self, batch: Batch) -> torch.Tensor:
        """See `Engine`."""
        self._module.eval()
        with torch.inference_mode(), self._autocast():
            losses: torch.Tensor = self._module(batch.tokens, batch.targets)
        self._module.train()
        return losses

    def step(self, lr: float) -> float:
        """See `Engine`."""
        clip = self._config.optim.clip or float("inf")
        norm = nn.utils.clip_grad_norm_(self._module.parameters(), clip)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def save(self, directory: Path) -> None:
        """See `Engine`; the optimiser's state holds no weights, they are those of the model directory."""
        if ranks.rank() == 0:
            self._write(directory, self._module.model.state_dict(), self._optimizer.state_dict())

    def snapshot(self) -> Write | None:
        """See `Engine`."""
        if ranks.rank() > 0:
            return lambda directory: None
        weights, optimizer = self._module.model.state_dict(), self._optimizer.state_dict()
        if 2 * (_bytes(weights) + _bytes(optimizer["state"])) > psutil.virtual_memory().available:
            return None
        copies = _on_host(weights), _on_host(optimizer)
        return lambda directory: self._write(directory, *copies)

    def _write(self, directory: Path, weights: dict[str, Any], optimizer: dict[str, Any]) -> None:
        _save_pretrained(self._module.model, directory / "model", weights)
        (directory / "state").mkdir()
        torch.save({"optimizer": optimizer, "names": self._names()}, directory / "state" / OPTIMIZER_FILE)

    def _names(self) -> list[str]:
        """Names of the parameters in the optimiser's own order."""
        names = {id(parameter): name for name, parameter in self._module.named_parameters()}
        return [names[id(p)] for group in self._optimizer.param_groups for p in group["params"]]

    def fits(self, state: Path) -> bool:
        """See `Engine`; any number of ranks will do."""
        return (state / OPTIMIZER_FILE).is_file()

    def load(self, state: Path, step: int) -> None:
        """See `Engine`; the saved state knows its step."""
        saved = torch.load(state / OPTIMIZER_FILE, map_location=self.device, weights_only=True)
        self._optimizer.load_state_dict(saved["optimizer"])

    def adopt(self, model: Path, moments: Moments, step: int) -> None:
        """See `Engine`."""
        parameters = dict(self._module.named_parameters())
        state = {}
        for number, name in enumerate(self._names()):
            first, second = (m.reshape(parameters[name].shape) for m in moments(name))
            state[number] = {"step": torch.tensor(float(step)), "exp_avg": first, "exp_avg_sq": second}
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": state})


class DeepSpeedEngine:
    """ZeRO: optimizer state (1), gradients (2) and weights (3) divided over the ranks."""

    def __init__(self, model: nn.Module, config: RunConfig, plan: Plan) -> None:
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param

        self.device = ranks.device()
        self._plan = plan
        module = LossModule(model).train()
        settings = deepspeed_config(config, plan)
        initial = {name: p.detach() for name, p in module.named_parameters()}
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=make_optimizer(module, config.optim, on_host=self._offloads(settings)),
            config=settings,
            dist_init_required=False,
        )
        if config.dtype == "bf16":  # DeepSpeed makes its master weights from the weights it has rounded to bf16
            for name, parameter in self._engine.module.named_parameters():
                safe_set_full_fp32_param(parameter, initial[name])

    @staticmethod
    def _offloads(settings: dict[str, Any]) -> bool:
        """Whether the optimizer's state lies in host memory, where DeepSpeed's own AdamW steps."""
        return "offload_optimizer" in settings["zero_optimization"]

    def forward_backward(self, batch: Batch, scale: float, last: bool) -> torch.Tensor:
        """See `Engine`; DeepSpeed counts the micro-batches itself, so `last` is not needed."""
        losses: torch.Tensor = self._engine(batch.tokens, batch.targets)
        self._engine.backward(losses.sum() * scale, scale_wrt_gas=False)
        if not last:
            self._engine.step()  # only moves its count of micro-batches
        return losses.detach()

    def evaluate(self, batch: Batch) -> torch.Tensor:
        """See `Engine`."""
        self._engine.eval()
        with torch.no_grad():
            losses: torch.Tensor = self._engine(batch.tokens, batch.targets)
        self._engine.train()
        return losses

    def step(self, lr: float) -> float:
        """See `Engine`."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def snapshot(self) -> Write | None:
        """See `Engine`; gathering the weights takes every rank."""
        return None

    def save(self, directory: Path) -> None:
        """See `Engine`; the fp32 master weights are gathered one parameter at a time onto rank 0."""
        from deepspeed.utils import safe_get_full_fp32_param

        model = self._engine.module.model
        weights: dict[str, torch.Tensor] = {}
        for name, parameter in model.named_parameters():
            full = safe_get_full_fp32_param(parameter)
            if ranks.rank() == 0:
                weights[name] = full.detach().cpu().clone()
        self._engine.save_checkpoint(str(directory / "state"), tag=ZERO)
        if ranks.rank() == 0:
            _save_pretrained(model, directory / "model", weights)
            (directory / "state" / STRATEGY_FILE).write_text(json.dumps(self._marker()))
            for script in (directory / "state").glob("zero_to_*.py"):  # DeepSpeed's; model/ needs no conversion
                script.unlink()

    def _marker(self) -> dict[str, Any]:
        return {"strategy": self._plan.strategy, "ranks": self._plan.ranks, "dtype": self._plan.dtype}

    def fits(self, state: Path) -> bool:
        """See `Engine`."""
        marker = state / STRATEGY_FILE
        return marker.is_file() and json.loads(marker.read_text()) == self._marker()

    def load(self, state: Path, step: int) -> None:
        """See `Engine`."""
        self._engine.load_checkpoint(str(state), tag=ZERO)
        self._replay(step)

    def _replay(self, step: int) -> None:
        optimizer = self._engine.optimizer.optimizer
        if hasattr(optimizer, "ds_opt_adam"):
            replay_beta_powers(optimizer, step)

    def adopt(self, model: Path, moments: Moments, step: int) -> None:
        """See `Engine`; master weights and moments are set through DeepSpeed's own access functions."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        from wellread.models.load import load_model

        weights = {name: p.detach() for name, p in LossModule(load_model(model)).named_parameters()}
        self._empty_step()
        for name, parameter in self._engine.module.named_parameters():
            first, second = (m.reshape(weights[name].shape) for m in moments(name))
            safe_set_full_fp32_param(parameter, weights[name])
            safe_set_full_optimizer_state(parameter, first, "exp_avg")
            safe_set_full_optimizer_state(parameter, second, "exp_avg_sq")
        for state in self._engine.optimizer.optimizer.state.values():
            state["step"] = torch.full_like(state["step"], step) if torch.is_tensor(state["step"]) else step
        self._replay(step)

    def _empty_step(self) -> None:
        """Take a step with zero gradients at learning rate 0: it changes no weight and makes the optimiser's state."""
        tokens = torch.zeros((self._plan.micro_batch_size, 8), dtype=torch.int64, device=self.device)
        targets = torch.ones_like(tokens, dtype=torch.bool)
        targets[:, 0] = False
        for number in range(self._plan.accumulation):
            losses = self._engine(tokens, targets)
            self._engine.backward(losses.sum() * 0.0, scale_wrt_gas=False)
            if number < self._plan.accumulation - 1:
                self._engine.step()
        self.step(lr=0.0)
        zero = self._engine.optimizer
        if hasattr(zero, "_hp_optimizer_states_linked"):
            # Stages 1 and 2 link moments to parameters after the step of the first group, when the others have none.
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()


def deepspeed_config(config: RunConfig, plan: Plan) -> dict[str, Any]:
    """What DeepSpeed is told: the file of the strategy (configs/ds), and what the plan owns."""
    settings: dict[str, Any] = json.loads((CONFIGS / "ds" / f"{plan.strategy}.json").read_text())
    return settings | {
        "train_batch_size": plan.batch_size,
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": config.optim.clip,
        "bf16": {"enabled": config.dtype == "bf16"},
        "steps_per_print": 10**9,  # the loop prints
    }


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


def _save_pretrained(model: Any, directory: Path, weights: dict[str, torch.Tensor]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory, state_dict=weights, safe_serialization=True)
