"""Plan a run from its config, machine, model and sample counts. Pure arithmetic: no file, no device, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from math import inf
from typing import Any

from wellread.config import ClusterConfig, RunConfig
from wellread.errors import UserError
from wellread.models.spec import ModelSpec
from wellread.order.permutation import steps_of
from wellread.planning import fast
from wellread.planning.batches import LARGEST_MICRO_BATCH, TOKENS_OF_A_PASS, micro_batches, ways
from wellread.planning.decision import Decision, asked_for, decide
from wellread.planning.estimate import Work
from wellread.planning.fallback import Failure, narrowed, that_count
from wellread.planning.machine import Machine
from wellread.planning.plan import Counts, Plan
from wellread.planning.rate import warmup_steps
from wellread.planning.saving import save_steps


def make_plan(
    config: RunConfig,
    spec: ModelSpec,
    machine: Machine,
    counts: Counts,
    ds_config: dict[str, Any] | None = None,
    failures: Sequence[Failure] = (),
    paths: Sequence[str] | None = None,
) -> Plan:
    """Decide batch sizes, engine, strategy, steps and checkpoints; `config` has its defaults resolved.

    Parameters
    ----------
    ds_config : dict, optional
        Settings of the DeepSpeed file that `config` names (see `wellread.planning.deepspeed_file.read`).
    failures : sequence of Failure
        Out-of-memory failures of this run: their strategies are skipped.
    paths : sequence of str, optional
        Names of the fast paths to choose from (default: all).

    Raises
    ------
    UserError
        When there is nothing to train on, no strategy fits, or the config does not suit the machine.
    """
    spec = replace(spec, fresh=spec.fresh or config.model.init == "fresh")
    batch_size = config.schedule.batch_size or spec.batch_size
    steps = _steps(config, spec, counts, batch_size)
    saves = save_steps(steps, config.save.save_every, config.save.save_schedule)
    setting = fast.Setting(config=config, spec=spec, machine=machine, steps=steps, among=paths)
    works = _works(config, spec, machine.ranks, batch_size, len(saves), fast.choose(setting).names)
    counted = that_count(failures, _limits(config.cluster, machine))
    decided, file = _decided(config, spec, machine, works, ds_config, counted)
    return Plan(
        model=spec.name,
        machine=machine,
        counts=counts,
        batch_size=batch_size,
        micro_batch_size=decided.work.micro_batch,
        accumulation=decided.work.accumulation,
        dtype=config.model.dtype,
        grad_accum_dtype=_grad_accum_dtype(config, decided),
        engine=decided.engine,
        strategy=decided.strategy,
        strategy_reason=decided.reason,
        strategies=tuple(estimate.as_dict() for estimate in decided.estimates),
        fast=(selection := fast.choose(setting, decided.engine)).names,
        fast_reason=selection.reason,
        seq_len=config.data.seq_len or spec.seq_len,
        order=config.schedule.order,
        order_control=config.schedule.order_control,
        steps=steps,
        epochs=round(steps * batch_size / counts.in_pass, 4),
        warmup_steps=warmup_steps(config.optim.warmup, steps),
        save_steps=saves,
        activation_checkpointing=decided.checkpointing,
        offload_ratio=decided.offload_ratio,
        ds_config=file,
        failures=tuple(asdict(failure) for failure in counted),
    )


def _works(
    config: RunConfig, spec: ModelSpec, ranks: int, batch_size: int, saves: int, possible: tuple[str, ...]
) -> list[Work]:
    """The ways to divide a batch into micro-batches (`wellread.planning.batches.ways`)."""
    seq_len = config.data.seq_len or spec.seq_len
    largest = max(1, TOKENS_OF_A_PASS // seq_len) if "tokens" in possible else LARGEST_MICRO_BATCH
    micros = micro_batches(batch_size, ranks, config.cluster.micro_batch_size, largest)
    return ways(config, spec, ranks, batch_size, micros, saves, possible)


def _decided(
    config: RunConfig,
    spec: ModelSpec,
    machine: Machine,
    works: list[Work],
    ds_config: dict[str, Any] | None,
    counted: tuple[Failure, ...],
) -> tuple[Decision, dict[str, Any] | None]:
    """The engine and the strategy, within the limits that the user gave and the failures showed.

    The settings of the DeepSpeed file follow, unless another strategy than the file's was taken.

    Raises
    ------
    UserError
        When nothing fits, or ``--compile`` or ``--float8`` is on and the engine does not have it.
    """
    request = asked_for(config.cluster, machine, ds_config)
    limits = narrowed(_limits(config.cluster, machine), counted)
    decision = decide(config, spec, limits, works, request, counted)
    for flag, is_on in {"compile": config.cluster.compile == "on", "float8": config.model.float8}.items():
        if is_on and decision.engine != "torch":
            raise UserError(f"--{flag}: works only with ddp, not {decision.strategy} ({decision.reason}); leave it out")
    return decision, ds_config if request and request.strategy == decision.strategy else None


def _grad_accum_dtype(config: RunConfig, decided: Decision) -> str:
    """Precision in which the engine adds up the gradients of micro-batches: torch always in fp32."""
    in_fp32 = decided.engine == "torch" or config.model.grad_accum_dtype == "fp32"
    return "fp32" if in_fp32 else config.model.dtype


def replan(config: RunConfig, spec: ModelSpec, plan: Plan, failures: Sequence[Failure]) -> Plan:
    """Make a new plan after `failures`, for the same ranks and the same corpus.

    Raises
    ------
    UserError
        When none of the remaining strategies fits.
    """
    new_plan = make_plan(config, spec, plan.machine, plan.counts, plan.ds_config, failures)
    return replace(new_plan, forced=plan.forced, warmup_steps=plan.warmup_steps)


def _steps(config: RunConfig, spec: ModelSpec, counts: Counts, batch_size: int) -> int:
    if counts.trainable < 1:
        raise UserError(f"--data {config.data.name}: no trainable samples; lower --holdout or give more rows")
    return config.schedule.steps or steps_of(config.schedule.epochs or spec.epochs, counts.in_pass, batch_size)


def _limits(config: ClusterConfig, machine: Machine) -> Machine:
    """The machine with the limits that the plan must respect."""
    return replace(
        machine,
        gpu_mem=machine.gpu_mem if machine.device == "cuda" else None,
        nvme=inf if machine.nvme is None and config.nvme_path else machine.nvme,
    )
