"""The plan of a run: what is decided before it starts, stored in plan.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from wellread.config import from_file
from wellread.errors import UserError
from wellread.files import read_json
from wellread.order.spec import parse
from wellread.planning.machine import Machine
from wellread.planning.strategies import STRATEGIES, Strategy
from wellread.shapes import REMEDY

KEYS = (
    "model", "cluster", "device", "nodes", "ranks_per_node", "ranks", "batch_size", "micro_batch_size", "accumulation",
    "dtype", "grad_accum_dtype", "engine", "strategy", "strategy_reason", "strategies", "fast", "fast_reason",
    "seq_len", "samples", "trainable", "sealed", "counts_exact", "order", "order_control", "pass_samples", "steps",
    "epochs", "warmup_steps", "save_steps", "gpu", "gpu_mem", "host_mem", "nvme", "activation_checkpointing",
    "offload_ratio", "ds_config", "failures", "forced",
)  # fmt: skip
"""Keys of plan.json in their order; the file is flat."""
_OF_MACHINE = ("cluster", "device", "nodes", "ranks_per_node", "gpu", "gpu_mem", "host_mem", "nvme")
_OF_COUNTS = {key: key for key in ("samples", "trainable", "sealed", "pass_samples")} | {"counts_exact": "exact"}
_OPTIONAL = ("gpu", "gpu_mem", "host_mem", "nvme", "pass_samples", "checksum")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Sizes of the corpus, as far as they are known before training."""

    samples: int
    trainable: int
    sealed: int
    exact: bool
    """False before the corpus is compiled: then the numbers are estimated from the rows of the sources."""
    pass_samples: int | None = None
    """Samples of one pass of the order; None: all trainable ones. An upper bound unless `exact`."""

    @property
    def in_pass(self) -> int:
        """Samples of one pass of the order."""
        return self.trainable if self.pass_samples is None else self.pass_samples


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is decided before a run starts."""

    model: str
    machine: Machine
    """The machines that the ranks run on, as far as they are known."""
    counts: Counts
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
    is unknown. Each has `strategy`, `activation_checkpointing`, `fits`, `gpu_bytes`, `host_bytes`, `disk_bytes`,
    `nvme_bytes`, `relative_speed`, `short`, `peaks`, `parts`."""
    grad_accum_dtype: str | None = None
    """Precision in which the gradients of micro-batches are added up; None in plans of older versions."""
    fast: tuple[str, ...] = ()
    """Names of the fast paths that the run takes (`wellread.planning.fast`)."""
    fast_reason: str = ""
    """Why these, in one line; empty where there is nothing to say."""
    seq_len: int
    order: str = "shuffle"
    order_control: bool = False
    steps: int
    epochs: float
    warmup_steps: int
    save_steps: tuple[int, ...]
    """Steps at which a checkpoint is saved."""
    activation_checkpointing: bool = False
    """Whether activations are recomputed in backward."""
    offload_ratio: float | None = None
    """Fraction of the optimizer that is in host memory (zero3-partial only)."""
    ds_config: dict[str, Any] | None = None
    """Settings of the user's DeepSpeed file; None: those of the strategy (configs/ds)."""
    failures: tuple[dict[str, Any], ...] = ()
    """Out-of-memory failures of earlier attempts that this plan considers (`wellread.planning.fallback.Failure`)."""
    forced: bool = False
    """Whether the run starts even if the plan does not fit (--force)."""

    @property
    def ranks(self) -> int:
        """Ranks of all nodes together."""
        return self.machine.ranks

    @property
    def rung(self) -> Strategy:
        """Properties of the strategy."""
        return STRATEGIES[self.strategy]

    @property
    def needs(self) -> dict[str, Any] | None:
        """The entry of `strategies` for this plan's strategy; None when memory is not predicted."""
        return next((entry for entry in self.strategies if entry["strategy"] == self.strategy), None)

    @classmethod
    def open(cls, path: Path) -> Plan:
        """Read a plan.json.

        Raises
        ------
        UserError
            When it is damaged.
        """
        return cls._of(read_json(path, dict), path)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan from the text of a plan.json."""
        return cls._of(json.loads(text), "plan.json")

    @classmethod
    def _of(cls, flat: dict[str, Any], path: object) -> Plan:
        def take(key: str) -> Any:
            if key not in values and key not in _OPTIONAL:
                raise UserError(f"{path}: damaged ({key!r} is missing); {REMEDY}")
            return values.pop(key, None)

        values = dict(flat)
        take("ranks")
        take("checksum")
        machine = {key: take(key) for key in _OF_MACHINE}
        counts = {name: take(key) for key, name in _OF_COUNTS.items()}
        plan: Plan = from_file(cls, values | {"machine": machine, "counts": counts}, path)
        return replace(
            plan,
            save_steps=tuple(plan.save_steps),
            strategies=tuple(plan.strategies),
            fast=tuple(plan.fast),
            failures=tuple(plan.failures),
        )

    def as_dict(self) -> dict[str, Any]:
        """The plan as a flat dictionary with the keys of plan.json."""
        values = asdict(self)
        machine, counts = values.pop("machine"), values.pop("counts")
        values |= {key: machine[key] for key in _OF_MACHINE} | {"ranks": self.ranks}
        values |= {key: counts[name] for key, name in _OF_COUNTS.items()}
        return {key: values[key] for key in KEYS}

    def files(self, *, canaries: bool = False) -> list[str]:
        """Files and directories that the run writes, relative to the run directory.

        Parameters
        ----------
        canaries : bool
            Whether the order has canaries.
        """
        checkpoints = [f"checkpoints/step-{step:08d}/" for step in self.save_steps]
        order = parse(self.order)
        order_files = ["order.npy"] * order.is_listed + ["order.json"] * (canaries or order.kind == "curriculum")
        return [
            "config.yaml",
            "plan.json",
            "manifest.json",
            "corpus",
            *order_files,
            "code/",
            "log/",
            "tb/",
            "record/",
            *checkpoints,
        ]
