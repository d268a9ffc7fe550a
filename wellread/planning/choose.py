"""Choose the fastest strategy that fits into memory; when none fits, say what would."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from wellread.models.adapter import ALL
from wellread.planning.estimate import MARGIN, Estimate, Work, estimate
from wellread.planning.machine import Machine, Place
from wellread.planning.strategies import LADDER
from wellread.units import GIB

if TYPE_CHECKING:
    from wellread.models.spec import ModelSpec

SHORTEST = 128
"""Shortest sequence length, in tokens, that the advice proposes."""
FREE = f", as {MARGIN:.0%} of each limit stays free"
MOST_NODES = 64
"""Most nodes that the advice proposes."""
LORA_RANK = 16
WORDS = {"gpu": "per GPU", "host": "of host memory per node", "disk": "of disk", "nvme": "of NVMe per node"}
FLAGS: dict[Place, str] = {"host": "--host_mem", "gpu": "--gpu_mem", "disk": "--disk", "nvme": "--nvme"}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The estimates of all strategies, and the best of them."""

    best: Estimate | None
    """The fastest that fits; None when none fits."""
    work: Work
    """How the best one divides the batch; when none fits, the last way that was tried."""
    reason: str
    """One line."""
    estimates: tuple[Estimate, ...]
    """In the order of `LADDER`, each without and with activation checkpointing."""
    advice: tuple[str, ...] = ()
    """When none fits: changes that would make one fit, one per line."""


def choose(
    spec: ModelSpec,
    works: Work | Sequence[Work],
    machine: Machine,
    *,
    strategies: Sequence[str] = tuple(LADDER),
    checkpointing: bool | None = None,
    margin: float = MARGIN,
    tried: Collection[tuple[str, bool]] = (),
) -> Choice:
    """Choose the strategy with the highest expected speed that fits within all limits, each less a margin.

    Parameters
    ----------
    works : Work or sequence of Work
        Ways to divide the batch, best first (larger micro-batches before smaller ones). Each strategy uses the first
        one with which it fits.
    strategies : sequence of str
        Names of the strategies to choose from.
    checkpointing : bool, optional
        True: only with activation checkpointing; False: only without; None: whichever is faster.
    margin : float
        Fraction of every limit that stays free.
    tried : collection of (str, bool)
        Strategies that have failed and are not chosen again, each with or without activation checkpointing.

    Raises
    ------
    UserError
        When a size is not valid, or a strategy or the model's family is unknown.
    """
    ways = [works] if isinstance(works, Work) else list(works)
    search = _Search(spec, strategies, (False, True) if checkpointing is None else (checkpointing,), margin)
    candidates = [
        search.first_that_fits(ways, machine, strategy, mode)
        for strategy, mode in search.rungs
        if (strategy, mode) not in tried
    ]
    fitting = [(candidate, work) for candidate, work in candidates if candidate.fits]
    best, work = max(fitting, key=lambda pair: pair[0].relative_speed, default=(None, ways[-1]))
    estimates = tuple(candidate for candidate, _ in candidates)
    return Choice(
        best=best,
        work=work,
        reason=_reason(best, estimates, machine),
        estimates=estimates,
        advice=() if best else _advice(search, work, machine, estimates),
    )


@dataclass(frozen=True)
class _Search:
    """The strategies to choose from, for one model."""

    spec: ModelSpec
    strategies: Sequence[str]
    modes: tuple[bool, ...]
    """Values of activation checkpointing to try: False, True or both."""
    margin: float

    @property
    def rungs(self) -> list[tuple[str, bool]]:
        """Every pair of strategy and activation checkpointing."""
        return [(strategy, checkpointing) for strategy in self.strategies for checkpointing in self.modes]

    def estimate(self, work: Work, machine: Machine, strategy: str, checkpointing: bool) -> Estimate:
        return estimate(self.spec, work, machine, strategy, checkpointing=checkpointing, margin=self.margin)

    def first_that_fits(
        self, ways: list[Work], machine: Machine, strategy: str, checkpointing: bool
    ) -> tuple[Estimate, Work]:
        """Estimate for the first way to divide the batch with which the strategy fits; for the last if none fits."""
        for work in ways:
            candidate = self.estimate(work, machine, strategy, checkpointing)
            if candidate.fits:
                break
        return candidate, work

    def fastest(self, work: Work, machine: Machine) -> Estimate | None:
        """Estimate of the fastest strategy that fits; None when none fits."""
        candidates = (self.estimate(work, machine, *rung) for rung in self.rungs)
        return max(
            (candidate for candidate in candidates if candidate.fits),
            key=lambda candidate: candidate.relative_speed,
            default=None,
        )


def name_of(candidate: Estimate) -> str:
    """A strategy in words, as messages name it."""
    ratio = "" if candidate.ratio is None else f" ({candidate.ratio:.0%} of the optimizer offloaded)"
    return candidate.strategy + ratio + " with activation checkpointing" * candidate.checkpointing


def _reason(best: Estimate | None, estimates: tuple[Estimate, ...], machine: Machine) -> str:
    if best is None:
        if not estimates:
            return "every strategy has been tried"
        nearest = min(estimates, key=lambda candidate: sum(_part_missing(candidate, machine)))
        return f"no strategy fits; the nearest, {name_of(nearest)}, is short of {_missing(nearest)}{FREE}"
    used = [
        f"{needed / GIB:,.1f} of {limit / GIB:,.4g} GiB {WORDS[place]}"
        for place, needed in (("gpu", best.gpu_bytes), ("host", best.host_bytes), ("nvme", best.nvme_bytes))
        if needed and (limit := machine.limit(place)) and limit < math.inf  # type: ignore[arg-type]
    ]
    faster = [e for e in estimates if not e.fits and e.relative_speed > best.relative_speed]
    faster_one = min(faster, key=lambda candidate: candidate.relative_speed, default=None)
    over = f"; {name_of(faster_one)} is short of {_missing(faster_one)}{FREE}" if faster_one else ""
    unknown = "; the memory of the GPUs is unknown" if used and machine.device == "cuda" and not machine.gpu_mem else ""
    return f"the fastest that fits ({', '.join(used) or 'no limits given'}){over}{unknown}"


def _part_missing(candidate: Estimate, machine: Machine) -> list[float]:
    """Missing bytes of each kind of memory, as a fraction of its limit."""
    return [size / (machine.limit(place) or size) for place, size in candidate.short.items()]  # type: ignore[arg-type]


def _missing(candidate: Estimate) -> str:
    return " and ".join(f"{size / GIB:,.1f} GiB {WORDS[place]}" for place, size in candidate.short.items())


def _advice(search: _Search, work: Work, machine: Machine, estimates: tuple[Estimate, ...]) -> tuple[str, ...]:
    """Changes that would make a strategy fit, one per line."""
    lines = []
    shorter = replace(work, micro_batch=1)
    while shorter.seq_len >= SHORTEST:
        if shorter != work and (candidate := search.fastest(shorter, machine)):
            lines.append(f"fewer tokens: --micro_batch_size 1 --seq_len {shorter.seq_len}, {name_of(candidate)}")
            break
        shorter = replace(shorter, seq_len=shorter.seq_len // 2)
    if not work.lora_rank and (candidate := search.fastest(replace(work, lora_rank=LORA_RANK), machine)):
        lines.append(f"LoRA: --lora.rank {LORA_RANK} --lora.targets {ALL}, {name_of(candidate)}")
    nodes = machine.nodes
    while (nodes := 2 * nodes) <= MOST_NODES:
        if candidate := search.fastest(work, replace(machine, nodes=nodes)):
            lines.append(f"--nodes {nodes}, {name_of(candidate)}")
            break
    return (*lines, *_more_memory(search, machine, estimates), *_nvme(search, work, machine))


def _more_memory(search: _Search, machine: Machine, estimates: tuple[Estimate, ...]) -> list[str]:
    """For each kind of memory: how much would be enough, if a strategy is short of only that kind."""
    lines = []
    for place, flag in FLAGS.items():
        candidates = [e for e in estimates if set(e.short) == {place}]
        if candidates:
            least = min(candidates, key=lambda e: e.short[place])
            needed = (machine.limit(place) or 0.0) + least.short[place] / (1 - search.margin)
            lines.append(f"{flag} {-(-needed // GIB):.0f}, {name_of(least)}")
    return lines


def _nvme(search: _Search, work: Work, machine: Machine) -> list[str]:
    """How much NVMe would be enough, when the plan knows of none."""
    lines = []
    for rung in LADDER.values():
        if rung.on_nvme and machine.nvme is None:
            candidate = search.estimate(work, replace(machine, nvme=math.inf), rung.name, search.modes[0])
            if candidate.fits:
                needed = candidate.nvme_bytes / (1 - search.margin)
                lines.append(f"--nvme_path with {-(-needed // GIB):.0f} GiB of NVMe per node, {name_of(candidate)}")
    return lines
