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
from wellread.train.engines.unpickling import restricted_loading
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
    from wellread.corpus.batch import Batch, FlatBatch
    from wellread.planning.plan import Plan

STRATEGY_FILE = "strategy.json"
"""Next to a ZeRO state: strategy, ranks and dtype that can load it."""
BUFFER_MULTIPLE = 1 << 20
"""The NVMe buffer is a multiple of this many elements, so that it can be aligned for direct I/O."""


class DeepSpeedEngine:
    """ZeRO: optimizer state (1), gradients (2) and weights (3) partitioned over the ranks."""

    def __init__(self, source: Source, config: RunConfig, plan: Plan) -> None:
        os.environ["PATH"] = own_path()  # before DeepSpeed loads its ops
        with importing():
            import deepspeed

            _import_muon()

        self.device = ranks.device()
        self._plan, self._source = plan, source
        settings = deepspeed_settings(config, plan)
        self._nvme = Path(config.cluster.nvme_path) if config.cluster.nvme_path and plan.rung.on_nvme else None
        self._clear_nvme()  # an attempt that was killed may have left files
        model, dtype = source.on_meta(), torch.bfloat16 if config.model.dtype == "bf16" else torch.float32
        self.parameters = sum(p.numel() for p in model.parameters())
        if offload_devices(settings).get("offload_param") == "nvme":
            largest = max(-(-p.numel() // plan.ranks) for p in model.parameters())
            pool = {"buffer_size": -(-largest // BUFFER_MULTIPLE) * BUFFER_MULTIPLE}
            settings["zero_optimization"]["offload_param"] = pool | settings["zero_optimization"]["offload_param"]
        freeze(model, config.model.freeze)
        self.trained = count_trained(model)
        weights = Weights(source, model)
        # DeepSpeed has no fp32 copy of frozen weights, so they are saved from the files that they were read from.
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
        """Let both optimizers of a partial offload (a ratio) share one state.

        DeepSpeed saves and loads only the state of the optimizer on the host; the GPU optimizer would lose its state.
        """
        on_gpu = getattr(self._engine.optimizer, "backup_optimizer", None)
        if on_gpu is not None:
            on_gpu.state = self._engine.optimizer.optimizer.state

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

    def forward_backward(self, batch: Batch | FlatBatch, scale: float, last: bool) -> torch.Tensor:
        """See `Engine`; DeepSpeed counts the micro-batches, and `step` counts the last one."""
        losses: torch.Tensor = self._engine(*batch.inputs)
        self._engine.backward(losses.sum() * scale, scale_wrt_gas=False)
        if not last:
            self._engine.step()  # only increments its counter of micro-batches
        return losses.detach()

    def evaluate(self, batch: Batch | FlatBatch) -> torch.Tensor:
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
        """See `Engine`; in every stage, DeepSpeed itself drops gradients if their norm is not finite."""
        zero = self._engine.optimizer
        not_offloaded = zero.backup_optimizer.param_groups if hasattr(zero, "backup_optimizer") else []
        for group in (*zero.param_groups, *not_offloaded):
            group["lr"] = lr
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def drop(self) -> None:
        """See `Engine`; only a norm that is not finite clears gradients in every stage and with every offload."""
        zero = self._engine.optimizer
        norm = torch.tensor(float("nan"), device=self.device)
        divided = self._engine.zero_optimization_stage() == 3
        name = "_get_norm_groups" if divided else "scaled_global_norm"
        setattr(zero, name, lambda: [norm] if divided else norm)  # on the instance; the class does not change
        self._engine.step()
        delattr(zero, name)
        assert zero.overflow, "DeepSpeed took a step with a norm that is not finite"

    def snapshot(self) -> Write | None:
        """See `Engine`; None, because gathering the weights needs every rank."""
        return None

    def save(self, directory: Path) -> None:
        """See `Engine`; gathers the fp32 master weights one parameter at a time, and writes shard by shard."""
        if ranks.rank() == 0:
            self._source.write(self._engine.module.model, directory / "model", self._saved())
        else:
            for _ in self._saved():  # gathering needs every rank
                pass
        if self._nvme:
            if ranks.rank() == 0:
                (directory / "state").mkdir()
            ranks.barrier()
            write_parts(directory / "state", ranks.rank(), self._local_moments(), tensors.SHARD_BYTES)
        else:
            self._engine.save_checkpoint(str(directory / "state"), tag=ZERO, exclude_frozen_parameters=True)
        if ranks.rank() == 0:
            (directory / "state" / STRATEGY_FILE).write_text(json.dumps(self._marker()), encoding="utf-8")
            # Scripts that DeepSpeed adds; model/ needs no conversion.
            for script in (directory / "state").glob("zero_to_*.py"):
                script.unlink()

    def _saved(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and fp32 value of each tensor in the model's directory, gathered one at a time. Collective."""
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

    def _local_moments(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """Parameter name, key and this rank's part of each moment, read from wherever it is offloaded to."""
        from deepspeed.utils import safe_get_local_optimizer_state

        has_state = bool(self._engine.optimizer.optimizer.state)
        for name, parameter in trained(self._engine.module):
            for key in KEYS:
                zeros = torch.zeros(parameter.ds_tensor.ds_numel)
                moment = safe_get_local_optimizer_state(parameter, key) if has_state else zeros
                yield name, key, unpadded(parameter, moment)

    def _marker(self) -> dict[str, Any]:
        users = {"ds_config": self._plan.ds_config} if self._plan.ds_config else {}
        return {"strategy": self._plan.strategy, "ranks": self._plan.ranks, "dtype": self._plan.dtype} | users

    def fits(self, state: Path) -> bool:
        """See `Engine`."""
        marker = state / STRATEGY_FILE
        return marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == self._marker()

    def load(self, state: Path, step: int) -> None:
        """See `Engine`."""
        if self._nvme:  # DeepSpeed's load would lose the step counts, and the moments of groups too small to swap
            self._set_moments(read(state, state), step)
            return
        # Without mapping, every rank reads its complete file, and that with rank 0's weights.
        with restricted_loading(state), mapped_files():
            # The state does not contain frozen weights.
            all_trained = self.trained == self.parameters
            self._engine.load_checkpoint(str(state), tag=ZERO, load_module_strict=all_trained)
        self._keep_state()
        self._share_state()
        self._replay(step)

    def _keep_state(self) -> None:
        """Copy moments that are views of a memory-mapped file: they would keep its disk space after it is deleted."""
        for state in self._engine.optimizer.optimizer.state.values():
            for key, value in state.items():
                if torch.is_tensor(value) and value.device.type == "cpu":
                    state[key] = value.clone()

    def _replay(self, step: int) -> None:
        optimizer = self._engine.optimizer.optimizer
        if hasattr(optimizer, "ds_opt_adam"):
            replay_beta_powers(optimizer, step)

    def adopt(self, model: Path, moments: Moments, step: int) -> None:
        """See `Engine`; sets master weights and moments through DeepSpeed's access functions."""
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
        """Take a step with zero gradients at learning rate 0, which creates the optimizer state, changing no weight."""
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
            # Stages 1 and 2 link moments to parameters after the first group's step, before the other groups have any.
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()


def _import_muon() -> None:
    """Import DeepSpeed's Muon with torch.compile disabled.

    All stages import it to check whether the optimizer is Muon. The functions that it compiles are never called here,
    but the call to torch.compile loads torch's inductor, which takes a second on every rank.
    """
    compiler = torch.compile
    torch.compile = lambda function: function  # type: ignore[assignment]
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        torch.compile = compiler


def deepspeed_settings(config: RunConfig, plan: Plan) -> dict[str, Any]:
    """Settings for DeepSpeed: the user's file or that of the strategy (configs/ds), and the values of the plan."""
    settings: dict[str, Any] = plan.ds_config or json.loads(
        (CONFIGS / "ds" / f"{plan.strategy}.json").read_text(encoding="utf-8")
    )
    zero = dict(settings["zero_optimization"])
    if plan.offload_ratio is not None and not plan.ds_config:
        zero["offload_optimizer"] = zero["offload_optimizer"] | {"ratio": plan.offload_ratio}
    for key, device in offload_devices(settings).items():
        if device == "nvme":
            zero[key] = zero[key] | {"nvme_path": config.cluster.nvme_path}
    in_fp32 = plan.grad_accum_dtype == "fp32" and config.model.dtype == "bf16"
    return settings | {
        "zero_optimization": zero,
        "train_batch_size": plan.batch_size,
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": config.optim.clip,
        "bf16": {"enabled": config.model.dtype == "bf16"},
        "steps_per_print": 10**9,  # the loop prints
        **({"data_types": {"grad_accum_dtype": "fp32"}} if in_fp32 else {}),
    }
