"""The DeepSpeed engine: ZeRO 1 to 3, with offload."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wellread.config import CONFIGS, RunConfig
from wellread.models import tensors
from wellread.models.load import Source
from wellread.planning.deepspeed_file import offload_devices
from wellread.processes import importing, own_path
from wellread.train import ranks
from wellread.train.engines.base import Write, count_trained, freeze, in_training
from wellread.train.engines.moments import KEYS, ZERO, Moments, mapped_files, read, write_parts
from wellread.train.engines.optim import make_optimizer, replay_beta_powers
from wellread.train.engines.weights import (
    Weights,
    fill,
    fill_divided,
    set_master,
    set_moment,
    shape_of,
    trained,
    unpadded,
)

if TYPE_CHECKING:
    from wellread.corpus.batch import Batch
    from wellread.planning.plan import Plan

STRATEGY_FILE = "strategy.json"
"""Beside a ZeRO state: what it fits."""
BUFFER_MULTIPLE = 1 << 20
"""Elements; room for the alignment of direct I/O."""


class DeepSpeedEngine:
    """ZeRO: optimizer state (1), gradients (2) and weights (3) divided over the ranks."""

    def __init__(self, source: Source, config: RunConfig, plan: Plan) -> None:
        os.environ["PATH"] = own_path()  # before DeepSpeed loads its ops
        with importing():
            import deepspeed

            _import_muon()

        self.device = ranks.device()
        self._plan, self._source = plan, source
        settings = deepspeed_settings(config, plan)
        self._nvme = Path(config.cluster.nvme_path) if config.cluster.nvme_path and plan.rung.on_nvme else None
        self._clear_nvme()  # of what an attempt that was killed left there
        model, dtype = source.on_meta(), torch.bfloat16 if config.model.dtype == "bf16" else torch.float32
        self.parameters = sum(p.numel() for p in model.parameters())
        if offload_devices(settings).get("offload_param") == "nvme":
            largest = max(-(-p.numel() // plan.ranks) for p in model.parameters())
            pool = {"buffer_size": -(-largest // BUFFER_MULTIPLE) * BUFFER_MULTIPLE}
            settings["zero_optimization"]["offload_param"] = pool | settings["zero_optimization"]["offload_param"]
        freeze(model, config.model.freeze)
        self.trained = count_trained(model)
        weights = Weights(source, model)
        # DeepSpeed keeps no fp32 of what is frozen: it is saved from where it was read.
        self._frozen = None if self.trained == self.parameters or source.adapter else weights
        if settings["zero_optimization"]["stage"] == 3:
            fill_divided(model, weights, dtype, self.device, settings)
        else:
            fill(model, weights, dtype, self.device)
        module = in_training(model, plan)
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=make_optimizer(module, config.optim, on_host="offload_optimizer" in offload_devices(settings)),
            config=settings,
            dist_init_required=False,
        )
        self._share_state()
        if config.model.dtype == "bf16":
            set_master(model, weights, self.device)

    def _share_state(self) -> None:
        """Let the optimizer of what is not offloaded (a ratio) keep its state with the other's.

        DeepSpeed saves and loads the state of the one on the host alone, and would begin the other's anew.
        """
        other = getattr(self._engine.optimizer, "backup_optimizer", None)
        if other is not None:
            other.state = self._engine.optimizer.optimizer.state

    def _clear_nvme(self) -> None:
        if self._nvme and ranks.local_rank() == 0:
            shutil.rmtree(self._nvme, ignore_errors=True)
            self._nvme.mkdir()
        ranks.barrier()

    def close(self) -> None:
        """See `Engine`."""
        ranks.barrier()
        if self._nvme and ranks.local_rank() == 0:
            shutil.rmtree(self._nvme, ignore_errors=True)

    def forward_backward(self, batch: Batch, scale: float, last: bool) -> torch.Tensor:
        """See `Engine`; DeepSpeed counts the micro-batches itself, so `last` is not needed."""
        losses: torch.Tensor = self._engine(*batch.inputs)
        self._engine.backward(losses.sum() * scale, scale_wrt_gas=False)
        if not last:
            self._engine.step()  # only moves its count of micro-batches
        return losses.detach()

    def evaluate(self, batch: Batch) -> torch.Tensor:
        """See `Engine`."""
        self._engine.eval()
        with torch.no_grad():
            losses: torch.Tensor = self._engine(*batch.inputs)
        self._engine.train()
        return losses

    def next_logits(self, tokens: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """See `Engine`."""
        self._engine.eval()
        with torch.no_grad():
            logits: torch.Tensor = self._engine(tokens, last, loss=False)
        self._engine.train()
        return logits

    def step(self, lr: float) -> float:
        """See `Engine`; DeepSpeed itself drops gradients whose norm is not finite, in every stage."""
        zero = self._engine.optimizer
        others = zero.backup_optimizer.param_groups if hasattr(zero, "backup_optimizer") else []
        for group in (*zero.param_groups, *others):
            group["lr"] = lr
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def drop(self) -> None:
        """See `Engine`; no other way clears gradients in every stage and offload than a norm that is not finite."""
        zero = self._engine.optimizer
        norm = torch.tensor(float("nan"), device=self.device)
        divided = self._engine.zero_optimization_stage() == 3
        name = "_get_norm_groups" if divided else "scaled_global_norm"
        setattr(zero, name, lambda: [norm] if divided else norm)  # on the instance: the class keeps its own
        self._engine.step()
        delattr(zero, name)
        assert zero.overflow, "DeepSpeed took a step with a norm that is not finite"

    def snapshot(self) -> Write | None:
        """See `Engine`; gathering the weights takes every rank."""
        return None

    def save(self, directory: Path) -> None:
        """See `Engine`; the fp32 master weights are gathered one parameter at a time, and written shard by shard."""
        if ranks.rank() == 0:
            self._source.write(self._engine.module.model, directory / "model", self._saved())
        else:
            for _ in self._saved():  # gathering takes every rank
                pass
        if self._nvme:
            if ranks.rank() == 0:
                (directory / "state").mkdir()
            ranks.barrier()
            write_parts(directory / "state", ranks.rank(), self._own_moments(), tensors.SHARD_BYTES)
        else:
            self._engine.save_checkpoint(str(directory / "state"), tag=ZERO, exclude_frozen_parameters=True)
        if ranks.rank() == 0:
            (directory / "state" / STRATEGY_FILE).write_text(json.dumps(self._marker()))
            for script in (directory / "state").glob("zero_to_*.py"):  # DeepSpeed's; model/ needs no conversion
                script.unlink()

    def _saved(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and fp32 value of what the model's directory holds, gathered one at a time. Collective."""
        from deepspeed.utils import safe_get_full_fp32_param

        model = self._engine.module.model
        parameters = dict(model.named_parameters())
        tensors = parameters | dict(model.named_buffers())
        for name in self._source.saved_names(model):
            if self._frozen and not tensors[name].requires_grad and name in parameters:
                shape = shape_of(parameters[name])
                yield name, self._frozen.on_rank0(name, shape, torch.float32, torch.device("cpu"))
                continue
            full = safe_get_full_fp32_param(tensors[name])
            yield name, (tensors[name] if full is None else full).detach().cpu().clone()

    def _own_moments(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """This rank's part of the moments, from wherever they are."""
        from deepspeed.utils import safe_get_local_optimizer_state

        begun = bool(self._engine.optimizer.optimizer.state)
        for name, parameter in trained(self._engine.module):
            for key in KEYS:
                zeros = torch.zeros(parameter.ds_tensor.ds_numel)
                moment = safe_get_local_optimizer_state(parameter, key) if begun else zeros
                yield name, key, unpadded(parameter, moment)

    def _marker(self) -> dict[str, Any]:
        own = {"ds_config": self._plan.ds_config} if self._plan.ds_config else {}
        return {"strategy": self._plan.strategy, "ranks": self._plan.ranks, "dtype": self._plan.dtype} | own

    def fits(self, state: Path) -> bool:
        """See `Engine`."""
        marker = state / STRATEGY_FILE
        return marker.is_file() and json.loads(marker.read_text()) == self._marker()

    def load(self, state: Path, step: int) -> None:
        """See `Engine`."""
        if self._nvme:  # DeepSpeed's load would lose the steps, and the moments of groups too small to be swapped
            self._set_moments(read(state, state), step)
            return
        with mapped_files():  # else every rank reads its file whole, and rank 0's weights too
            # What is frozen is not in the state.
            whole = self.trained == self.parameters
            self._engine.load_checkpoint(str(state), tag=ZERO, load_module_strict=whole)
        self._keep_state()
        self._share_state()
        self._replay(step)

    def _keep_state(self) -> None:
        """Copy moments that are still parts of a mapped file, which would stay on disk after it is deleted."""
        for state in self._engine.optimizer.optimizer.state.values():
            for key, value in state.items():
                if torch.is_tensor(value) and value.device.type == "cpu":
                    state[key] = value.clone()

    def _replay(self, step: int) -> None:
        optimizer = self._engine.optimizer.optimizer
        if hasattr(optimizer, "ds_opt_adam"):
            replay_beta_powers(optimizer, step)

    def adopt(self, model: Path, moments: Moments, step: int) -> None:
        """See `Engine`; master weights and moments are set through DeepSpeed's own access functions."""
        self._set_moments(moments, step)
        source = Source.of(model)
        set_master(self._engine.module.model, Weights(source, source.on_meta()), self.device)

    def _set_moments(self, moments: Moments, step: int) -> None:
        self._empty_step()
        for name, parameter in trained(self._engine.module):
            for key, moment in zip(KEYS, moments(name), strict=True):
                set_moment(parameter, key, moment)
        self._set_step(step)
        self._replay(step)

    def _set_step(self, step: int) -> None:
        for state in self._engine.optimizer.optimizer.state.values():
            state["step"] = torch.full_like(state["step"], step) if torch.is_tensor(state["step"]) else step

    def _empty_step(self) -> None:
        """Take a step with zero gradients at learning rate 0: it changes no weight and makes the optimizer's state."""
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


def _import_muon() -> None:
    """Import DeepSpeed's Muon without torch.compile, as all stages do with it, to see that the optimizer is none.

    What it would compile is never called, and to say so loads torch's inductor, for a second on every rank.
    """
    compiler = torch.compile
    torch.compile = lambda function: function  # type: ignore[assignment]
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        torch.compile = compiler


def deepspeed_settings(config: RunConfig, plan: Plan) -> dict[str, Any]:
    """What DeepSpeed is told: the user's file or that of the strategy (configs/ds), and what the plan owns."""
    settings: dict[str, Any] = plan.ds_config or json.loads((CONFIGS / "ds" / f"{plan.strategy}.json").read_text())
    zero = dict(settings["zero_optimization"])
    if plan.offload_ratio is not None and not plan.ds_config:
        zero["offload_optimizer"] = zero["offload_optimizer"] | {"ratio": plan.offload_ratio}
    for key, device in offload_devices(settings).items():
        if device == "nvme":
            zero[key] = zero[key] | {"nvme_path": config.cluster.nvme_path}
    return settings | {
        "zero_optimization": zero,
        "train_batch_size": plan.batch_size,
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": config.optim.clip,
        "bf16": {"enabled": config.model.dtype == "bf16"},
        "steps_per_print": 10**9,  # the loop prints
    }
