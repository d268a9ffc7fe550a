"""Print a plan as text or as JSON."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from launch.job import Job
from wellread.checkpoint import list_checkpoints
from wellread.order.spec import parse
from wellread.planning.estimate import MARGIN
from wellread.planning.plan import Plan
from wellread.provenance import SECRET_NAMES
from wellread.terminal import plural
from wellread.units import GIB


def as_dict(job: Job) -> dict[str, Any]:
    """Return the plan as one JSON object, with the files that the run writes."""
    plan = job.planned()
    started = {"command": _command(job), "environment": _environment(job, plan)} | _plan_files(job, plan)
    about = {"chosen": plan.strategy, "out": str(job.run.path), "files": _files(job, plan)} | started
    return plan.as_dict() | about | dict.fromkeys(_arithmetic(job), True)


def as_text(job: Job) -> str:
    """Return the plan as aligned lines."""
    plan = job.planned()
    machine = plan.machine
    rows = [
        ("run", f"{job.run.path}{_state(job)}"),
        ("model", f"{plan.model} ({', '.join([plan.dtype, *_arithmetic(job)])}; {_gradients(plan)})"),
        ("data", f"{job.config.data.name}: {_counts(plan, job.config.data.pack)}"),
        ("order", _order(plan)),
        ("batch", _batch(plan)),
        ("engine", f"{plan.engine}, {plan.strategy}{_recomputing(plan)} ({plan.strategy_reason})"),
        *([("fast paths", plan.fast_reason)] if plan.fast_reason else []),
        *([("memory", memory(plan.strategies, plan.strategy))] if plan.strategies else []),
        (
            "ranks",
            f"{plural(machine.nodes, 'node')} x {machine.ranks_per_node} on {machine.cluster} ({machine.device})",
        ),
        ("steps", _steps(plan)),
        ("learning rate", f"{job.config.optim.lr:g}, {_decay(job)}"),
        *([("defaults", _defaults(job))] if _defaults(job) else []),
        ("checkpoints", f"{len(plan.save_steps)}, at steps {', '.join(map(str, plan.save_steps))}"),
        ("files", "\n".join(_files(job, plan))),
        ("command", shlex.join(_command(job))),
        ("environment", "\n".join(f"{k}={v}" for k, v in sorted(_environment(job, plan).items()))),
    ]
    rows += [(f"{name} file", text.rstrip()) for name, text in _plan_files(job, plan).items()]
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{width}}{value}".replace("\n", "\n" + " " * width) for name, value in rows)


def _files(job: Job, plan: Plan) -> list[str]:
    """Return the files that the run writes."""
    return plan.files(canaries=bool(job.config.canary.canaries))


def _gradients(plan: Plan) -> str:
    return f"gradients added up in {plan.grad_accum_dtype}"


def _arithmetic(job: Job) -> list[str]:
    """Return the names of the settings of arithmetic that are on."""
    return [name for name in ("tf32", "float8", "deterministic") if getattr(job.config.model, name)]


def _steps(plan: Plan) -> str:
    epochs = f"{plan.epochs:g} epoch{'s' * (plan.epochs != 1)}"
    return f"{plan.steps:,} = {epochs}, {plan.warmup_steps} of them warm-up"


def _decay(job: Job) -> str:
    least = job.config.optim.min_lr
    return f"cosine to {least:g} of it" if least else "cosine to 0"


def _defaults(job: Job) -> str:
    """List the training settings that are the model's defaults, and their source; empty without any."""
    spec, config = job.spec, job.config
    settings = {"learning rate": config.optim.lr, "batch": config.schedule.batch_size, "epochs": config.schedule.epochs}
    usual = {"learning rate": spec.lr, "batch": spec.batch_size, "epochs": spec.epochs}
    names = [name for name, value in settings.items() if value == usual[name]]
    names += ["schedule"] * (replace(config.optim, lr=None) == type(config)().optim)
    return f"{', '.join(names)} of {spec.name}; sources: docs/defaults.md" if names else ""


def _shortage(strategy: dict[str, Any], place: str) -> str:
    size = strategy["short"][place]
    if place == "nvme" and size >= strategy["nvme_bytes"]:  # no directory is known, so all of it is missing
        return "needs --nvme_path"
    return f"{size / GIB:,.2f} GiB of {place} missing"


def _recomputing(plan: Plan) -> str:
    return " with activation checkpointing" * plan.activation_checkpointing


def memory(strategies: Sequence[dict[str, Any]], selected: str | None) -> str:
    """Return the memory of each strategy as an aligned table; mark the selected one."""
    heads = ["strategy", "GiB per GPU", "GiB per node", "GiB on disk", "speed"]
    heads.append(f"{MARGIN:.0%} of each limit stays free")
    rows = [heads]
    for strategy in strategies:
        sizes = [f"{strategy[key] / GIB:,.2f}" for key in ("gpu_bytes", "host_bytes", "disk_bytes")]
        short = [_shortage(strategy, place) for place in strategy["short"]]
        state = "chosen" if strategy["strategy"] == selected else ""
        remark = ", ".join([state] * bool(state) + short) or "fits"
        remark += " with activation checkpointing" * (strategy["activation_checkpointing"] and not short)
        ratio = "" if strategy["offload_ratio"] is None else f" {strategy['offload_ratio']:.0%}"
        rows.append([strategy["strategy"] + ratio, *sizes, f"{strategy['relative_speed']:.2f}", remark])
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines = []
    for name, *numbers, remark in rows:
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:5], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells, remark]).rstrip())
    return "\n".join(lines)


def _command(job: Job) -> list[str]:
    """Return the command of each rank."""
    return [job.backend.file.python or sys.executable, "-u", *job.training.arguments]


def _environment(job: Job, plan: Plan) -> dict[str, str]:
    """Return the environment variables of each rank; the cluster file may contain secrets, which are not shown."""
    secrets = {name for name in job.backend.file.environment if SECRET_NAMES.search(name)}
    variables = job.backend.environment(plan, job.training.code)
    return {name: "[secret]" if name in secrets else value for name, value in variables.items()}


def _plan_files(job: Job, plan: Plan) -> dict[str, str]:
    """Return other files for the cluster's backend: name -> text."""
    return job.backend.plan_files(job.training, plan)


def _state(job: Job) -> str:
    resumable = [checkpoint for checkpoint in list_checkpoints(job.run.checkpoints) if checkpoint.resumable]
    if not resumable:
        return ""
    step = resumable[-1].step
    return " (finished)" if step == job.planned().steps else f" (started; would resume from step {step})"


def _counts(plan: Plan, packed: bool) -> str:
    about = "" if plan.counts.exact else "at most " if packed else "about "
    text = f"{about}{plan.counts.trainable:,} trainable + {about}{plan.counts.sealed:,} sealed samples"
    text += f", up to {plan.seq_len} tokens" + ", packed" * packed
    return text if plan.counts.exact else f"{text} (exact once the corpus is compiled)"


def _order(plan: Plan) -> str:
    kind = parse(plan.order).kind
    control = ", control arm: the same readings in random order" * plan.order_control
    rough = "at most about " if kind in ("filter", "curriculum") else "about "
    about = "" if plan.counts.exact or kind == "file" else rough
    return f"{plan.order}{control}; {about}{plural(plan.counts.in_pass, 'sample')} per pass"


def _batch(plan: Plan) -> str:
    merged = "tokens" in plan.fast and plan.engine == "torch"
    return (
        f"{plural(plan.batch_size, 'sample')} = micro-batch {plan.micro_batch_size} x accumulation {plan.accumulation} "
        f"x {plan.ranks} rank{'s' * (plan.ranks > 1)}"
        + f", or more samples in fewer micro-batches of up to {plan.micro_batch_size * plan.seq_len:,} tokens"
        * merged
    )
