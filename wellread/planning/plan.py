"""RunConfig + cluster + model + counts -> plan. Pure: it reads no file, no device, no clock."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil, inf
from typing import TYPE_CHECKING, Any, get_args

from wellread.config import RunConfig, Strategy, from_dict
from wellread.errors import UserError
from wellread.models.adapter import targets
from wellread.order.permutation import steps_of
from wellread.order.spec import parse
from wellread.planning import deepspeed_file as ds_configs
from wellread.planning.choose import Choice, choose
from wellread.planning.estimate import Estimate, Machine, Work, estimate
from wellread.planning.fallback import Failure, narrowed, that_count
from wellread.planning.parameters import knows

if TYPE_CHECKING:
    from wellread.models.spec import ModelSpec

LARGEST_MICRO_BATCH = 8
CHECKPOINTS_PER_RUN = 8
LOG_SCHEDULE_ENDS = 512
RUNGS = tuple(name for name in get_args(Strategy) if name != "auto")
"""Strategies that the engines know, fastest first."""


class NothingFits(UserError):
    """No strategy fits."""

    def __init__(self, text: str, strategies: tuple[dict[str, Any], ...]) -> None:
        super().__init__(text)
        self.strategies = strategies
        """As a plan has them."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What the ranks run on."""

    kind: str
    nodes: int
    ranks_per_node: int
    device: str
    """cpu or cuda."""
    gpu_mem: float | None = None
    """GiB of each GPU; None, here and below: not known, and no limit to hold."""
    host_mem: float | None = None
    """GiB of each node."""
    nvme: float | None = None
    """GiB free on each node's NVMe disk."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What is known of the corpus beforehand."""

    samples: int
    trainable: int
    sealed: int
    exact: bool
    """False before the corpus is compiled: then the counts come from the rows of the source."""
    pass_samples: int | None = None
    """Samples of one pass of the order; None: all trainable ones. Unless `exact`, at most so many."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is decided before a run starts."""

    model: str
    cluster: str
    device: str
    nodes: int
    ranks_per_node: int
    ranks: int
    batch_size: int
    micro_batch_size: int
    accumulation: int
    dtype: str
    engine: str
    """torch (one process or DDP) or deepspeed (ZeRO)."""
    strategy: str
    strategy_reason: str
    strategies: tuple[dict[str, Any], ...] = ()
    """Predicted bytes of every strategy, fastest first (`wellread.planning.estimate`); empty when the model's family
    is unknown to it. Each has `strategy`, `activation_checkpointing`, `fits`, `gpu_bytes`, `host_bytes`, `disk_bytes`,
    `nvme_bytes`, `relative_speed`, `short`, `peaks`, `parts`."""
    seq_len: int
    samples: int
    trainable: int
    sealed: int
    counts_exact: bool
    order: str = "shuffle"
    order_control: bool = False
    pass_samples: int | None = None
    """Samples of one pass of the order; None: all trainable ones."""
    steps: int
    epochs: float
    warmup_steps: int
    save_steps: tuple[int, ...]
    """Steps at which a checkpoint is saved."""
    gpu_mem: float | None = None
    """GiB of each GPU; None, here and below: not known."""
    host_mem: float | None = None
    nvme: float | None = None
    activation_checkpointing: bool = False
    """Activations are computed again in backward."""
    offload_ratio: float | None = None
    """Part of the optimizer that lies in host memory, under zero3-partial."""
    ds_config: dict[str, Any] | None = None
    """The user's own DeepSpeed settings; None for those of the strategy (configs/ds)."""
    failures: tuple[dict[str, Any], ...] = ()
    """Attempts whose memory ran out, of which this plan takes account (`wellread.planning.fallback.Failure`)."""
    forced: bool = False
    """It is started whatever it needs."""

    @property
    def needs(self) -> dict[str, Any] | None:
        """What the strategy needs, out of `strategies`; None when nothing is predicted."""
        return next((found for found in self.strategies if found["strategy"] == self.strategy), None)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that plan.json holds."""
        plan: Plan = from_dict(cls, json.loads(text))
        return replace(
            plan,
            save_steps=tuple(plan.save_steps),
            strategies=tuple(plan.strategies),
            failures=tuple(plan.failures),
        )

    def files(self) -> list[str]:
        """Files and directories that the run writes, relative to the run directory."""
        saved = [f"checkpoints/step-{step:08d}/" for step in self.save_steps]
        order = parse(self.order)
        kept = ["order.npy"] * order.is_listed + ["order.json"] * (order.kind == "curriculum")
        return ["config.yaml", "plan.json", "manifest.json", "corpus", *kept, "code/", "log/", "tb/", "record/", *saved]


def make_plan(
    config: RunConfig,
    spec: ModelSpec,
    cluster: Cluster,
    counts: Counts,
    ds_config: dict[str, Any] | None = None,
    failures: Sequence[Failure] = (),
) -> Plan:
    """Decide batch arithmetic, engine, strategy, steps and checkpoints.

    Parameters
    ----------
    config : RunConfig
        Resolved (see `wellread.recipes`).
    ds_config : dict, optional
        What the file that `config` names holds (see `wellread.planning.deepspeed_file.read`).
    failures : sequence of Failure
        Attempts of this run whose memory ran out: their strategies are passed over.

    Raises
    ------
    UserError
        When the batch cannot be divided over the ranks, there is nothing to train on, no strategy fits, or the one
        that is asked for lacks something.
    """
    ranks = cluster.nodes * cluster.ranks_per_node
    spec = replace(spec, fresh=spec.fresh or config.init == "fresh")
    batch_size = config.batch_size or spec.batch_size
    micros = _micro_batches(batch_size, ranks, config.micro_batch_size)
    if counts.trainable < 1:
        raise UserError(f"--data {config.data}: no trainable samples; lower --holdout or give more rows")
    n = counts.trainable if counts.pass_samples is None else counts.pass_samples
    steps = config.steps or steps_of(config.epochs or spec.epochs, n, batch_size)
    saves = save_steps(steps, config.save_every, config.save_schedule)
    works = _works(config, spec, ranks, batch_size, micros, len(saves))
    machine = _machine(config, cluster)
    counted = that_count(failures, machine)
    asked = _asked(config, cluster, ds_config)
    decided = _decide(config, spec, narrowed(machine, counted), works, asked, counted)
    if config.compile and decided.strategy != "ddp":
        raise UserError(f"--compile: is for ddp, and {decided.strategy} is {decided.reason}; leave it out")
    return Plan(
        model=spec.name,
        cluster=cluster.kind,
        device=cluster.device,
        nodes=cluster.nodes,
        ranks_per_node=cluster.ranks_per_node,
        ranks=ranks,
        batch_size=batch_size,
        micro_batch_size=decided.micro_batch,
        accumulation=batch_size // (decided.micro_batch * ranks),
        dtype=config.dtype,
        engine="torch" if decided.strategy == "ddp" else "deepspeed",
        strategy=decided.strategy,
        strategy_reason=decided.reason,
        strategies=tuple(_listed(found) for found in decided.estimates),
        seq_len=config.seq_len or spec.seq_len,
        samples=counts.samples,
        trainable=counts.trainable,
        sealed=counts.sealed,
        counts_exact=counts.exact,
        order=config.order,
        order_control=config.order_control,
        pass_samples=counts.pass_samples,
        steps=steps,
        epochs=round(steps * batch_size / n, 4),
        warmup_steps=ceil(config.optim.warmup * steps),
        save_steps=saves,
        gpu_mem=cluster.gpu_mem,
        host_mem=cluster.host_mem,
        nvme=cluster.nvme,
        activation_checkpointing=decided.checkpointing,
        offload_ratio=decided.offload_ratio,
        ds_config=ds_config if asked and asked[0] == decided.strategy else None,
        failures=tuple(asdict(failure) for failure in counted),
    )


def replan(config: RunConfig, spec: ModelSpec, plan: Plan, failures: Sequence[Failure]) -> Plan:
    """The plan again, for the same ranks and the same corpus, after `failures`.

    Raises
    ------
    UserError
        When nothing that is left fits.
    """
    cluster = Cluster(
        kind=plan.cluster,
        nodes=plan.nodes,
        ranks_per_node=plan.ranks_per_node,
        device=plan.device,
        gpu_mem=plan.gpu_mem,
        host_mem=plan.host_mem,
        nvme=plan.nvme,
    )
    counts = Counts(
        samples=plan.samples,
        trainable=plan.trainable,
        sealed=plan.sealed,
        exact=plan.counts_exact,
        pass_samples=plan.pass_samples,
    )
    made = make_plan(config, spec, cluster, counts, plan.ds_config, failures)
    return replace(made, forced=plan.forced)


def _micro_batches(batch_size: int, ranks: int, asked: int | None) -> list[int]:
    """Micro-batches that divide the batch evenly, largest first; the one that is asked for alone."""
    if batch_size % ranks:
        near = [b for b in (batch_size // ranks * ranks, -(-batch_size // ranks) * ranks) if b]
        raise UserError(
            f"--batch_size {batch_size}: not divisible by {ranks} ranks; choose {' or '.join(map(str, near))}"
        )
    per_rank = batch_size // ranks
    if asked is None:
        return [m for m in range(min(per_rank, LARGEST_MICRO_BATCH), 0, -1) if per_rank % m == 0]
    if per_rank % asked:
        raise UserError(f"--micro_batch_size {asked}: does not divide the {per_rank} samples of each rank and step")
    return [asked]


def _works(
    config: RunConfig, spec: ModelSpec, ranks: int, batch_size: int, micros: list[int], checkpoints: int
) -> list[Work]:
    return [
        Work(
            dtype=config.dtype,
            micro_batch=micro,
            accumulation=batch_size // (micro * ranks),
            seq_len=config.seq_len or spec.seq_len,
            lora_rank=config.lora.rank,
            lora_modules=targets(config.lora, spec) if config.lora.rank else (),
            packed=config.pack,
            checkpoints=checkpoints,
            states=config.keep_states,
        )
        for micro in micros
    ]


@dataclass(frozen=True)
class _Decision:
    strategy: str
    checkpointing: bool
    micro_batch: int
    reason: str
    estimates: tuple[Estimate, ...]

    @property
    def offload_ratio(self) -> float | None:
        return next((found.ratio for found in self.estimates if found.strategy == self.strategy), None)


def _asked(config: RunConfig, cluster: Cluster, ds_config: dict[str, Any] | None) -> tuple[str, str] | None:
    """Strategy that is asked for, by name or by a DeepSpeed file, and how; None: it is left to the plan."""
    strategy: str = ds_configs.strategy(ds_config) if ds_config else config.strategy
    if ds_config and config.strategy not in ("auto", strategy):
        raise UserError(
            f"--ds_config {config.ds_config}: is {strategy}, but --strategy {config.strategy} is given; leave one out"
        )
    if strategy.endswith("-nvme") and not _has_nvme(config, cluster):
        raise UserError(
            f"--strategy {strategy}: needs --nvme_path, a directory on each node's NVMe disk; to plan alone, --nvme GiB"
        )
    return None if strategy == "auto" else (strategy, f"of {config.ds_config}" if ds_config else "asked for")


def _has_nvme(config: RunConfig, cluster: Cluster) -> bool:
    return config.nvme_path is not None or cluster.nvme is not None


def _machine(config: RunConfig, cluster: Cluster) -> Machine:
    return Machine(
        device=cluster.device,
        nodes=cluster.nodes,
        ranks_per_node=cluster.ranks_per_node,
        gpu_mem=cluster.gpu_mem if cluster.device == "cuda" else None,
        host_mem=cluster.host_mem,
        nvme=inf if cluster.nvme is None and config.nvme_path else cluster.nvme,
    )


def _decide(
    config: RunConfig,
    spec: ModelSpec,
    machine: Machine,
    works: list[Work],
    asked: tuple[str, str] | None,
    failures: Sequence[Failure],
) -> _Decision:
    """Strategy and micro-batch: those asked for, unless they have failed, else the fastest that fit."""
    again = {"auto": None, "on": True, "off": False}[config.activation_checkpointing]
    if config.load_in_4bit:
        if machine.device != "cuda":
            raise UserError("--load_in_4bit: needs GPUs, the ranks would run on CPUs; leave it out")
        return _Decision("ddp", bool(again), works[0].micro_batch, "memory is not predicted for weights of 4 bits", ())
    if not knows(spec):
        unknown = "ddp", "memory is not predicted for this family of models; name a --strategy"
        strategy, reason = asked or unknown
        return _Decision(strategy, bool(again), works[0].micro_batch, reason, ())
    tried = {failure.rung for failure in failures}
    modes = [False, True] if again is None else [again]

    def all_with(work: Work) -> tuple[Estimate, ...]:
        """What each strategy would need with the same micro-batch; with checkpointing where it fits only so."""
        rows = ([estimate(spec, work, machine, name, checkpointing=mode) for mode in modes] for name in RUNGS)
        return tuple(next((found for found in row if found.fits), row[0]) for row in rows)

    if asked and not any((asked[0], mode) in tried for mode in modes):
        strategy, reason = asked
        if strategy not in RUNGS:  # zero1-offload, by a file of the user's: it is not predicted
            return _Decision(strategy, bool(again), works[-1].micro_batch, reason, all_with(works[-1]))
        choice = choose(spec, works, machine, strategies=[strategy], checkpointing=again)
        if choice.chosen or not failures:
            found = choice.chosen or choice.estimates[0]
            return _Decision(strategy, found.checkpointing, choice.work.micro_batch, reason, all_with(choice.work))
    rungs = [name for name in RUNGS if machine.nvme is not None or name != "zero3-nvme"]
    choice = choose(spec, works, machine, strategies=rungs, checkpointing=again, tried=tried)
    if choice.chosen is None:
        text = _nothing_fits(spec, machine, choice, failures)
        raise NothingFits(text, tuple(_listed(found) for found in all_with(choice.work)))
    reason = f"{choice.reason}; {failures[-1]}" if failures else choice.reason
    return _Decision(
        choice.chosen.strategy,
        choice.chosen.checkpointing,
        choice.work.micro_batch,
        reason,
        all_with(choice.work),
    )


def _nothing_fits(spec: ModelSpec, machine: Machine, choice: Choice, failures: Sequence[Failure]) -> str:
    where = f"{machine.nodes} x {machine.ranks_per_node} ranks" + "".join(f"; {failure}" for failure in failures)
    advice = list(choice.advice)
    if failures:  # what the narrowed machine lacks is no advice
        advice = ["--ladder off, which tries again what failed when there is more memory now"]
    elif machine.device == "cpu":
        advice.append("GPUs: plan for some that are not here with --gpu_mem")
    would = f"; what would fit: {', or '.join(advice)}" if advice else ""
    return f"{spec.name} on {where}: {choice.reason}{would}"


def _listed(found: Estimate) -> dict[str, Any]:
    """An estimate as plan.json has it."""
    sizes = ("gpu_bytes", "host_bytes", "disk_bytes", "nvme_bytes")
    names = ("strategy", "fits", *sizes, "relative_speed", "short", "peaks", "parts")
    return {name: getattr(found, name) for name in names} | {
        "activation_checkpointing": found.checkpointing,
        "offload_ratio": found.ratio,
    }


def save_steps(steps: int, every: int | None, schedule: str) -> tuple[int, ...]:
    """Steps at which a checkpoint is saved: always the first (0) and the last."""
    every = every or _round_number(steps / CHECKPOINTS_PER_RUN)
    regular = set(range(0, steps, every))
    if schedule == "log":
        early = {2**i for i in range(10) if 2**i < steps}
        regular = early | {step for step in regular if step > LOG_SCHEDULE_ENDS} | {0}
    return tuple(sorted(regular | {0, steps}))


def _round_number(least: float) -> int:
    """Smallest of 1, 2, 5, 10, 20, 50 ... that is at least `least`."""
    scale = 1
    while True:
        for digit in (1, 2, 5):
            if digit * scale >= least:
                return digit * scale
        scale *= 10
