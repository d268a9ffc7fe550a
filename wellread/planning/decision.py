"""The strategy of a plan: the one that is asked for, else the fastest that fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wellread.config import ClusterConfig, RunConfig
from wellread.errors import UserError
from wellread.models.spec import ModelSpec
from wellread.planning import deepspeed_file
from wellread.planning.choose import Choice, choose
from wellread.planning.estimate import Estimate, Work, estimate
from wellread.planning.fallback import Failure
from wellread.planning.machine import Machine
from wellread.planning.parameters import knows
from wellread.planning.strategies import LADDER, PLAIN, STRATEGIES, Engine

MODES = {"auto": (False, True), "off": (False,), "on": (True,)}
"""Without and with activation checkpointing, as far as --activation_checkpointing leaves the choice."""


class NothingFits(UserError):
    """No strategy fits."""

    def __init__(self, text: str, strategies: tuple[dict[str, Any], ...]) -> None:
        super().__init__(text)
        self.strategies = strategies
        """As a plan has them."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A strategy that is asked for."""

    strategy: str
    how: str
    """By name or by a DeepSpeed file, in words."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The strategy that was taken."""

    strategy: str
    reason: str
    work: Work
    """How it divides the batch."""
    checkpointing: bool
    estimates: tuple[Estimate, ...] = ()
    """Of every strategy of the ladder; none where memory is not predicted."""

    @property
    def engine(self) -> Engine:
        """Who trains."""
        return STRATEGIES[self.strategy].engine

    @property
    def offload_ratio(self) -> float | None:
        """Part of the optimizer that is offloaded, where that is a choice."""
        return next((found.ratio for found in self.estimates if found.strategy == self.strategy), None)


def asked_for(config: ClusterConfig, machine: Machine, ds_config: dict[str, Any] | None) -> Asked | None:
    """The strategy that is asked for; None: it is left to the plan.

    Raises
    ------
    UserError
        When two are asked for, or the one lacks something.
    """
    name: str = deepspeed_file.strategy(ds_config) if ds_config else config.strategy
    if ds_config and config.strategy not in ("auto", name):
        raise UserError(
            f"--ds_config {config.ds_config}: is {name}, but --strategy {config.strategy} is given; leave one out"
        )
    if name == "auto":
        return None
    if STRATEGIES[name].on_nvme and config.nvme_path is None and machine.nvme is None:
        raise UserError(
            f"--strategy {name}: needs --nvme_path, a directory on each node's NVMe disk; to plan alone, --nvme GiB"
        )
    return Asked(strategy=name, how=f"of {config.ds_config}" if ds_config else "asked for")


def decide(
    config: RunConfig,
    spec: ModelSpec,
    machine: Machine,
    works: list[Work],
    asked: Asked | None,
    failures: Sequence[Failure],
) -> Decision:
    """Strategy and micro-batch: those asked for, unless they have failed, else the fastest that fit.

    Parameters
    ----------
    machine : Machine
        Its limits are those that hold.
    works : list of Work
        Ways to divide the batch, best first.
    failures : sequence of Failure
        Those that count on this machine.

    Raises
    ------
    NothingFits
        When no strategy does.
    UserError
        When weights of 4 bits are asked for without GPUs.
    """
    modes = MODES[config.cluster.activation_checkpointing]
    unpredicted = None
    if config.model.load_in_4bit:
        if machine.device != "cuda":
            raise UserError("--load_in_4bit: needs GPUs, the ranks would run on CPUs; leave it out")
        unpredicted = Asked(strategy=PLAIN, how="memory is not predicted for weights of 4 bits")
    elif not knows(spec):
        why = "memory is not predicted for this family of models; name a --strategy"
        unpredicted = asked or Asked(strategy=PLAIN, how=why)
    if unpredicted:
        name, reason = unpredicted.strategy, unpredicted.how
        return Decision(strategy=name, reason=reason, work=works[0], checkpointing=modes == (True,))
    search = _Search(spec, works, machine, modes, failures)
    return (search.of(asked) if asked else None) or search.fastest()


@dataclass(frozen=True)
class _Search:
    """The ladder, for one model on one machine."""

    spec: ModelSpec
    works: list[Work]
    machine: Machine
    modes: tuple[bool, ...]
    failures: Sequence[Failure]

    def predicted(self, work: Work) -> tuple[Estimate, ...]:
        """What each strategy would need with the same micro-batch; with checkpointing where it fits only so."""
        rows = (
            [estimate(self.spec, work, self.machine, name, checkpointing=mode) for mode in self.modes]
            for name in LADDER
        )
        return tuple(next((found for found in row if found.fits), row[0]) for row in rows)

    def of(self, asked: Asked) -> Decision | None:
        """The strategy that is asked for; None: it has failed, or after failures it does not fit."""
        tried = {failure.rung for failure in self.failures}
        if any((asked.strategy, mode) in tried for mode in self.modes):
            return None
        if asked.strategy not in LADDER:
            return self._taken(asked.strategy, asked.how, self.works[-1], self.modes == (True,))
        choice = choose(
            self.spec, self.works, self.machine, strategies=[asked.strategy], checkpointing=self._checkpointing
        )
        if self.failures and not choice.chosen:
            return None
        found = choice.chosen or choice.estimates[0]
        return self._taken(asked.strategy, asked.how, choice.work, found.checkpointing)

    def fastest(self) -> Decision:
        """The fastest strategy that fits and has not failed."""
        choice = choose(
            self.spec,
            self.works,
            self.machine,
            strategies=[name for name, rung in LADDER.items() if self.machine.nvme is not None or not rung.on_nvme],
            checkpointing=self._checkpointing,
            tried={failure.rung for failure in self.failures},
        )
        if choice.chosen is None:
            listed = tuple(found.as_dict() for found in self.predicted(choice.work))
            raise NothingFits(self._nothing_fits(choice), listed)
        reason = f"{choice.reason}; {self.failures[-1]}" if self.failures else choice.reason
        return self._taken(choice.chosen.strategy, reason, choice.work, choice.chosen.checkpointing)

    @property
    def _checkpointing(self) -> bool | None:
        return self.modes[0] if len(self.modes) == 1 else None

    def _taken(self, strategy: str, reason: str, work: Work, checkpointing: bool) -> Decision:
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
        if self.failures:  # what the narrowed machine lacks is no advice
            advice = ["--ladder off, which tries again what failed when there is more memory now"]
        elif self.machine.device == "cpu":
            advice.append("GPUs: plan for some that are not here with --gpu_mem")
        would = f"; what would fit: {', or '.join(advice)}" if advice else ""
        return f"{self.spec.name} on {where}: {choice.reason}{would}"
