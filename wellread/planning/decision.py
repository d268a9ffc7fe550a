"""The strategy of a plan: the requested one, otherwise the fastest that fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wellread.config import ClusterConfig, RunConfig
from wellread.errors import UserError
from wellread.models.spec import ModelSpec
from wellread.planning import deepspeed_file, float8
from wellread.planning.choose import Choice, choose
from wellread.planning.estimate import Estimate, Work, estimate
from wellread.planning.fallback import Failure
from wellread.planning.machine import Machine
from wellread.planning.parameters import knows
from wellread.planning.strategies import LADDER, PLAIN, STRATEGIES, Engine

MODES = {"auto": (False, True), "off": (False,), "on": (True,)}
"""Value of --activation_checkpointing -> which modes may be chosen: False is without, True is with it."""

ONLY_ON_GPUS = ("tf32", "float8", "load_in_4bit")
"""Settings of the model that are refused on CPUs."""


class NothingFits(UserError):
    """No strategy fits into memory."""

    def __init__(self, text: str, strategies: tuple[dict[str, Any], ...]) -> None:
        super().__init__(text)
        self.strategies = strategies
        """Estimates of all strategies, as `Plan.strategies` has them."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A strategy that the user requests."""

    strategy: str
    how: str
    """How it was requested, in words: by name or by a DeepSpeed file."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The strategy that a run uses."""

    strategy: str
    reason: str
    work: Work
    """How it divides the batch."""
    checkpointing: bool
    estimates: tuple[Estimate, ...] = ()
    """Of every strategy of `LADDER`; empty when memory is not predicted."""

    @property
    def engine(self) -> Engine:
        """torch or deepspeed."""
        return STRATEGIES[self.strategy].engine

    @property
    def offload_ratio(self) -> float | None:
        """Fraction of the optimizer that is offloaded; None when the strategy has no such choice."""
        return next((candidate.ratio for candidate in self.estimates if candidate.strategy == self.strategy), None)


def asked_for(config: ClusterConfig, machine: Machine, ds_config: dict[str, Any] | None) -> Request | None:
    """The requested strategy; None when the plan chooses one.

    Raises
    ------
    UserError
        When two different strategies are requested, or --nvme_path is missing.
    """
    name: str = deepspeed_file.strategy(ds_config) if ds_config else config.strategy
    if ds_config and config.strategy not in ("auto", name):
        raise UserError(
            f"--ds_config {config.ds_config}: is {name}, but --strategy {config.strategy} is given; remove one of them"
        )
    if name == "auto":
        return None
    if STRATEGIES[name].on_nvme and config.nvme_path is None and machine.nvme is None:
        raise UserError(
            f"--strategy {name}: needs --nvme_path, a directory on each node's NVMe disk; to only plan, give --nvme"
        )
    return Request(strategy=name, how=f"of {config.ds_config}" if ds_config else "asked for")


def decide(
    config: RunConfig,
    spec: ModelSpec,
    machine: Machine,
    works: list[Work],
    request: Request | None,
    failures: Sequence[Failure],
) -> Decision:
    """Decide strategy and micro-batch size: those requested unless they have failed, otherwise the fastest that fit.

    Parameters
    ----------
    machine : Machine
        With the memory limits that the plan must respect.
    works : list of Work
        Ways to divide the batch, best first.
    failures : sequence of Failure
        Out-of-memory failures that apply to this machine (`that_count`).

    Raises
    ------
    NothingFits
        When no strategy fits.
    UserError
        When a setting of `ONLY_ON_GPUS` is on without GPUs, the model or the GPUs do not suit float8, or the requested
        strategy cannot add up gradients in fp32.
    """
    modes = MODES[config.cluster.activation_checkpointing]
    unpredicted = None
    needs_fp32 = config.model.grad_accum_dtype == "fp32" and config.model.dtype == "bf16"
    if needs_fp32 and request and not STRATEGIES[request.strategy].fp32_gradients:
        able = ", ".join(name for name, rung in LADDER.items() if rung.fp32_gradients)
        raise UserError(f"--grad_accum_dtype fp32: {request.strategy} cannot do this; choose one of {able}")
    for flag in ONLY_ON_GPUS:
        if getattr(config.model, flag) and machine.device != "cuda":
            raise UserError(f"--{flag}: needs GPUs, but the ranks would run on CPUs; leave it out")
    if config.model.float8:
        float8.check(spec, machine.gpu)
    if config.model.load_in_4bit:
        unpredicted = Request(strategy=PLAIN, how="memory is not predicted for 4-bit weights")
    elif not knows(spec):
        why = "memory is not predicted for this model family; choose a --strategy"
        unpredicted = request or Request(strategy=PLAIN, how=why)
    if unpredicted:
        name, reason = unpredicted.strategy, unpredicted.how
        return Decision(strategy=name, reason=reason, work=works[0], checkpointing=modes == (True,))
    allowed = tuple(name for name, rung in LADDER.items() if rung.fp32_gradients or not needs_fp32)
    search = _Search(spec, works, machine, modes, failures, allowed)
    return (search.of(request) if request else None) or search.fastest()


@dataclass(frozen=True)
class _Search:
    """Search over the strategies, for one model on one machine."""

    spec: ModelSpec
    works: list[Work]
    machine: Machine
    modes: tuple[bool, ...]
    failures: Sequence[Failure]
    allowed: Sequence[str]
    """Names of the strategies to choose from."""

    def predicted(self, work: Work) -> tuple[Estimate, ...]:
        """Estimate of each strategy for the same micro-batch size; with checkpointing if it fits only that way."""
        rows = (
            [estimate(self.spec, work, self.machine, name, checkpointing=mode) for mode in self.modes]
            for name in LADDER
        )
        return tuple(next((candidate for candidate in row if candidate.fits), row[0]) for row in rows)

    def of(self, request: Request) -> Decision | None:
        """Decision for the requested strategy; None if it has failed before, or no longer fits after failures."""
        tried = {failure.rung for failure in self.failures}
        if any((request.strategy, mode) in tried for mode in self.modes):
            return None
        if request.strategy not in LADDER:
            return self._decision(request.strategy, request.how, self.works[-1], self.modes == (True,))
        choice = choose(
            self.spec, self.works, self.machine, strategies=[request.strategy], checkpointing=self._checkpointing
        )
        if self.failures and not choice.best:
            return None
        candidate = choice.best or choice.estimates[0]
        return self._decision(request.strategy, request.how, choice.work, candidate.checkpointing)

    def fastest(self) -> Decision:
        """Decision for the fastest strategy that fits and has not failed."""
        choice = choose(
            self.spec,
            self.works,
            self.machine,
            strategies=[n for n in self.allowed if self.machine.nvme is not None or not LADDER[n].on_nvme],
            checkpointing=self._checkpointing,
            tried={failure.rung for failure in self.failures},
        )
        if choice.best is None:
            listed = tuple(candidate.as_dict() for candidate in self.predicted(choice.work))
            raise NothingFits(self._nothing_fits(choice), listed)
        reason = f"{choice.reason}; {self.failures[-1]}" if self.failures else choice.reason
        return self._decision(choice.best.strategy, reason, choice.work, choice.best.checkpointing)

    @property
    def _checkpointing(self) -> bool | None:
        return self.modes[0] if len(self.modes) == 1 else None

    def _decision(self, strategy: str, reason: str, work: Work, checkpointing: bool) -> Decision:
        return Decision(
            strategy=strategy,
            reason=reason,
            work=work,
            checkpointing=checkpointing,
            estimates=self.predicted(work),
        )

    def _nothing_fits(self, choice: Choice) -> str:
        where = f"{self.machine.nodes} x {self.machine.ranks_per_node} ranks"
        where += "".join(f"; {failure}" for failure in self.failures)
        advice = list(choice.advice)
        if self.failures:  # the narrowed limits would make the advice wrong
            advice = ["--ladder off, which retries the failed strategy, if more memory is free now"]
        elif self.machine.device == "cpu":
            advice.append("GPUs that this machine does not have: plan for them with --gpu_mem")
        would = f"; what would fit: {', or '.join(advice)}" if advice else ""
        return f"{self.spec.name} on {where}: {choice.reason}{would}"
