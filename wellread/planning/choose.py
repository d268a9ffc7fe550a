"""The fastest strategy that fits: tried from the top of the ladder, and what would fit when nothing does."""

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
"""Tokens of a sample below which shorter ones are not proposed."""
MOST_NODES = 64
LORA_RANK = 16
WORDS = {"gpu": "per GPU", "host": "of host memory per node", "disk": "of disk", "nvme": "of NVMe per node"}
FLAGS: dict[Place, str] = {"host": "--host_mem", "gpu": "--gpu_mem", "disk": "--disk", "nvme": "--nvme"}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Every strategy's estimate, and the one that was chosen."""

    chosen: Estimate | None
    """None when nothing fits."""
    work: Work
    """How the chosen one divides the batch; the last way that was tried when nothing fits."""
    reason: str
    """One line."""
    estimates: tuple[Estimate, ...]
    """In the order of the ladder, each without and with activation checkpointing."""
    advice: tuple[str, ...] = ()
    """When nothing fits: what would, a line each."""


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
    """Take the strategy with the highest expected speed that fits all limits, each with a margin.

    Parameters
    ----------
    works : Work or sequence of Work
        Ways to divide the batch, best first (larger micro-batches before smaller ones): a strategy takes the first
        that fits, and none of a slower strategy is preferred to it.
    strategies : sequence of str
        Those that may be chosen, such as the rungs of the ladder that have not failed yet.
    checkpointing : bool, optional
        Only with activation checkpointing, or only without; None: whichever is faster.
    margin : float
        Part of every limit that is left free.
    tried : collection of (str, bool)
        Strategies, with or without activation checkpointing, that have failed: not to be chosen.

    Raises
    ------
    UserError
        When a size makes no sense, or a strategy or the model's family is unknown.
    """
    ways = [works] if isinstance(works, Work) else list(works)
    search = _Search(spec, strategies, (False, True) if checkpointing is None else (checkpointing,), margin)
    ways_up = [
        search.first_that_fits(ways, machine, strategy, again)
        for strategy, again in search.rungs
        if (strategy, again) not in tried
    ]
    fitting = [(found, work) for found, work in ways_up if found.fits]
    chosen, work = max(fitting, key=lambda pair: pair[0].relative_speed, default=(None, ways[-1]))
    estimates = tuple(found for found, _ in ways_up)
    return Choice(
        chosen=chosen,
        work=work,
        reason=_reason(chosen, estimates, machine),
        estimates=estimates,
        advice=() if chosen else _advice(search, work, machine, estimates),
    )


@dataclass(frozen=True)
class _Search:
    """What may be chosen for a model."""

    spec: ModelSpec
    strategies: Sequence[str]
    modes: tuple[bool, ...]
    """Without and with activation checkpointing, or one of both."""
    margin: float

    @property
    def rungs(self) -> list[tuple[str, bool]]:
        """Every strategy, in every mode."""
        return [(strategy, again) for strategy in self.strategies for again in self.modes]

    def estimate(self, work: Work, machine: Machine, strategy: str, again: bool) -> Estimate:
        return estimate(self.spec, work, machine, strategy, checkpointing=again, margin=self.margin)

    def first_that_fits(self, ways: list[Work], machine: Machine, strategy: str, again: bool) -> tuple[Estimate, Work]:
        """The first way to divide the batch with which a strategy fits; else the last."""
        for work in ways:
            found = self.estimate(work, machine, strategy, again)
            if found.fits:
                break
        return found, work

    def fastest(self, work: Work, machine: Machine) -> Estimate | None:
        """The fastest strategy that fits, if any does."""
        found = (self.estimate(work, machine, *rung) for rung in self.rungs)
        return max((each for each in found if each.fits), key=lambda each: each.relative_speed, default=None)


def name_of(found: Estimate) -> str:
    """A strategy as the plan names it."""
    ratio = "" if found.ratio is None else f" ({found.ratio:.0%} of the optimizer offloaded)"
    return found.strategy + ratio + " with activation checkpointing" * found.checkpointing


def _reason(chosen: Estimate | None, estimates: tuple[Estimate, ...], machine: Machine) -> str:
    if chosen is None:
        if not estimates:
            return "every strategy has been tried"
        nearest = min(estimates, key=lambda found: sum(_part_missing(found, machine)))
        return f"nothing fits; nearest is {name_of(nearest)}, short of {_missing(nearest)}"
    used = [
        f"{needed / GIB:,.1f} of {limit / GIB:,.4g} GiB {WORDS[place]}"
        for place, needed in (("gpu", chosen.gpu_bytes), ("host", chosen.host_bytes), ("nvme", chosen.nvme_bytes))
        if needed and (limit := machine.limit(place)) and limit < math.inf  # type: ignore[arg-type]
    ]
    faster = [e for e in estimates if not e.fits and e.relative_speed > chosen.relative_speed]
    passed = min(faster, key=lambda found: found.relative_speed, default=None)
    over = f"; {name_of(passed)} is short of {_missing(passed)}" if passed else ""
    unknown = "; the GPUs' memory is not known" if used and machine.device == "cuda" and not machine.gpu_mem else ""
    return f"the fastest that fits ({', '.join(used) or 'no limits given'}){over}{unknown}"


def _part_missing(found: Estimate, machine: Machine) -> list[float]:
    """What is missing of each limit, as a part of it."""
    return [size / (machine.limit(place) or size) for place, size in found.short.items()]  # type: ignore[arg-type]


def _missing(found: Estimate) -> str:
    return " and ".join(f"{size / GIB:,.1f} GiB {WORDS[place]}" for place, size in found.short.items())


def _advice(search: _Search, work: Work, machine: Machine, estimates: tuple[Estimate, ...]) -> tuple[str, ...]:
    """What would fit, a line for each way there is."""
    lines = []
    shorter = replace(work, micro_batch=1)
    while shorter.seq_len >= SHORTEST:
        if shorter != work and (found := search.fastest(shorter, machine)):
            lines.append(f"fewer tokens: --micro_batch_size 1 --seq_len {shorter.seq_len}, {name_of(found)}")
            break
        shorter = replace(shorter, seq_len=shorter.seq_len // 2)
    if not work.lora_rank and (found := search.fastest(replace(work, lora_rank=LORA_RANK), machine)):
        lines.append(f"LoRA: --lora.rank {LORA_RANK} --lora.targets {ALL}, {name_of(found)}")
    nodes = machine.nodes
    while (nodes := 2 * nodes) <= MOST_NODES:
        if found := search.fastest(work, replace(machine, nodes=nodes)):
            lines.append(f"--nodes {nodes}, {name_of(found)}")
            break
    return (*lines, *_more_memory(search, machine, estimates), *_nvme(search, work, machine))


def _more_memory(search: _Search, machine: Machine, estimates: tuple[Estimate, ...]) -> list[str]:
    """How much of one kind of memory would be enough, where a strategy lacks only that."""
    lines = []
    for place, flag in FLAGS.items():
        alone = [e for e in estimates if set(e.short) == {place}]
        if alone:
            least = min(alone, key=lambda e: e.short[place])
            needed = (machine.limit(place) or 0.0) + least.short[place] / (1 - search.margin)
            lines.append(f"{flag} {-(-needed // GIB):.0f}, {name_of(least)}")
    return lines


def _nvme(search: _Search, work: Work, machine: Machine) -> list[str]:
    """How much NVMe would be enough, where none is known."""
    lines = []
    for rung in LADDER.values():
        if rung.on_nvme and machine.nvme is None:
            found = search.estimate(work, replace(machine, nvme=math.inf), rung.name, search.modes[0])
            if found.fits:
                needed = found.nvme_bytes / (1 - search.margin)
                lines.append(f"--nvme_path with {-(-needed // GIB):.0f} GiB of NVMe per node, {name_of(found)}")
    return lines
