"""RunConfig + cluster + model + counts -> plan. Pure: it reads no file, no device, no clock."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING

from wellread.config import RunConfig, from_dict
from wellread.order import Order

if TYPE_CHECKING:
    from wellread.models.registry import ModelSpec

LARGEST_MICRO_BATCH = 8
CHECKPOINTS_PER_RUN = 8
LOG_SCHEDULE_ENDS = 512


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What the ranks run on."""

    kind: str
    nodes: int
    ranks_per_node: int
    device: str
    """cpu or cuda."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What is known of the corpus beforehand."""

    samples: int
    trainable: int
    sealed: int
    exact: bool
    """False before the corpus is compiled: then the counts come from the rows of the source."""


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
    seq_len: int
    samples: int
    trainable: int
    sealed: int
    counts_exact: bool
    steps: int
    epochs: float
    warmup_steps: int
    save_steps: tuple[int, ...]
    """Steps at which a checkpoint is saved."""

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that plan.json holds."""
        plan: Plan = from_dict(cls, json.loads(text))
        return plan

    def files(self) -> list[str]:
        """Files and directories that the run writes, relative to the run directory."""
        saved = [f"checkpoints/step-{step:08d}/" for step in self.save_steps]
        return ["config.yaml", "plan.json", "manifest.json", "corpus", "code/", "log/", "tb/", "record/", *saved]


def resolve(config: RunConfig, spec: ModelSpec) -> RunConfig:
    """Fill in every default that depends on the model; steps are left to the plan.

    Raises
    ------
    ValueError
        When the sequence length is beyond the model's positions.
    """
    seq_len = config.seq_len or min(spec.seq_len, spec.positions)
    if seq_len > spec.positions:
        raise ValueError(f"--seq_len {seq_len}: {spec.name} has {spec.positions} positions; choose at most that")
    data = config.data or ("sample" if spec.name == "tiny" else "dolly")
    return replace(
        config,
        data=data,
        out=config.out or f"runs/{spec.name}-{_short(data)}",
        epochs=None if config.steps else config.epochs or spec.epochs,
        batch_size=config.batch_size or spec.batch_size,
        seq_len=seq_len,
        optim=replace(config.optim, lr=config.optim.lr or spec.lr),
    )


def _short(data: str) -> str:
    """Name of a data set, or of its file, without folders and suffix."""
    return data.rpartition("@")[2].rpartition("/")[2].partition(".")[0]


def make_plan(config: RunConfig, spec: ModelSpec, cluster: Cluster, counts: Counts) -> Plan:
    """Decide batch arithmetic, engine, steps and checkpoints.

    Parameters
    ----------
    config : RunConfig
        Resolved (see `resolve`).

    Raises
    ------
    ValueError
        When the batch cannot be divided over the ranks, or there is nothing to train on.
    """
    ranks = cluster.nodes * cluster.ranks_per_node
    batch_size = config.batch_size or spec.batch_size
    micro = _micro_batch(batch_size, ranks, config.micro_batch_size)
    if counts.trainable < 1:
        raise ValueError(f"--data {config.data}: no trainable samples; lower --holdout or give more rows")
    order = Order(kind="shuffle", seed=config.seed, n=counts.trainable, batch_size=batch_size)
    steps = config.steps or order.steps(config.epochs or spec.epochs)
    strategy, reason = _strategy(config, ranks)
    return Plan(
        model=spec.name,
        cluster=cluster.kind,
        device=cluster.device,
        nodes=cluster.nodes,
        ranks_per_node=cluster.ranks_per_node,
        ranks=ranks,
        batch_size=batch_size,
        micro_batch_size=micro,
        accumulation=batch_size // (micro * ranks),
        dtype=config.dtype,
        engine="torch" if strategy == "ddp" else "deepspeed",
        strategy=strategy,
        strategy_reason=reason,
        seq_len=config.seq_len or spec.seq_len,
        samples=counts.samples,
        trainable=counts.trainable,
        sealed=counts.sealed,
        counts_exact=counts.exact,
        steps=steps,
        epochs=round(steps * batch_size / counts.trainable, 4),
        warmup_steps=ceil(config.optim.warmup * steps),
        save_steps=save_steps(steps, config.save_every, config.save_schedule),
    )


def _micro_batch(batch_size: int, ranks: int, asked: int | None) -> int:
    if batch_size % ranks:
        near = [b for b in (batch_size // ranks * ranks, -(-batch_size // ranks) * ranks) if b]
        raise ValueError(
            f"--batch_size {batch_size}: not divisible by {ranks} ranks; choose {' or '.join(map(str, near))}"
        )
    per_rank = batch_size // ranks
    if asked is None:
        return max(m for m in range(1, min(per_rank, LARGEST_MICRO_BATCH) + 1) if per_rank % m == 0)
    if per_rank % asked:
        raise ValueError(f"--micro_batch_size {asked}: does not divide the {per_rank} samples of each rank and step")
    return asked


def _strategy(config: RunConfig, ranks: int) -> tuple[str, str]:
    if config.strategy != "auto":
        return config.strategy, "asked for"
    return "ddp", f"fastest on {ranks} rank{'s' * (ranks > 1)}; every rank holds the whole state"


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
