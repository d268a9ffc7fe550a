"""The cases of `make gpu-check`, their order, and their predictions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from wellread.config import RunConfig, Strategy, Switch
from wellread.errors import UserError
from wellread.models.registry import find
from wellread.models.spec import ModelSpec
from wellread.planning.choose import choose, name_of
from wellread.planning.estimate import Estimate, Work, estimate
from wellread.planning.machine import Machine
from wellread.planning.parameters import parameters
from wellread.planning.plan import Counts, Plan
from wellread.planning.planner import make_plan
from wellread.planning.strategies import LADDER, STRATEGIES
from wellread.recipes.registry import resolve
from wellread.units import GIB

MODELS = ("1.4b", "6.9b", "12b", "410m", "2.8b", "70m", "1b", "160m")
"""Sizes of Pythia, the most informative first: a medium size, then sizes where strategies begin to differ."""
MICRO_BATCHES = (8, 4, 2, 1)
"""Candidates for the number of samples per forward pass; the largest one that is predicted to fit is used."""
SEQ_LEN = 2048
STEPS = 4
"""Number of steps; the first one creates the optimizer state and is not timed."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run."""

    model: str
    strategy: Strategy
    checkpointing: Switch = "off"
    micro_batch: int | None = None
    """None: the largest of `MICRO_BATCHES` that is predicted to fit."""
    seq_len: int = SEQ_LEN
    story: bool = False
    """Part of the story: run at the end, even if it is predicted not to fit."""

    @property
    def name(self) -> str:
        """Name for --only."""
        recomputed = " checkpointing" if self.checkpointing == "on" else ""
        return f"{'story ' if self.story else ''}{self.model} {self.strategy}{recomputed}"


@dataclass(frozen=True)
class Settled:
    """A case with its settings, plan and prediction."""

    case: Case
    config: RunConfig
    plan: Plan
    predicted: Estimate


def cases(device: str) -> list[Case]:
    """All cases, the most informative first and the story last."""
    if device == "cpu":  # the same code with models that a CPU trains in a second
        small = [Case(model="tiny", strategy=strategy, micro_batch=2, seq_len=64) for strategy in ("ddp", "zero2")]
        # Needs more bytes than the address space has, so it fails at once without using memory.
        naive = Case(model="tiny", strategy="ddp", micro_batch=2**40, seq_len=64, story=True)
        return [*small, naive, Case(model="tiny", strategy="auto", micro_batch=2, seq_len=64, story=True)]
    # Both with one sample, so that the same work fails with one strategy and trains with the other.
    naive = Case(model="pythia-12b", strategy="ddp", micro_batch=1, story=True)
    planned = Case(model="pythia-12b", strategy="auto", micro_batch=1, story=True)
    return [*_grid(), naive, planned]


def _grid() -> list[Case]:
    def of(size: str) -> Iterator[Case]:
        for strategy in LADDER:
            yield Case(model=f"pythia-{size}", strategy=strategy)  # type: ignore[arg-type]
        yield Case(model=f"pythia-{size}", strategy="ddp", checkpointing="on")
        yield Case(model=f"pythia-{size}", strategy="zero3", checkpointing="on")

    first, *remaining = MODELS
    plain = [Case(model=f"pythia-{size}", strategy="ddp") for size in remaining]
    ordered = [*of(first), *plain, *(case for size in remaining for case in of(size))]
    return list(dict.fromkeys(ordered))


def settle(case: Case, machine: Machine, nvme: Path) -> Settled | None:
    """Plan a case as `launch` does; None if it is predicted not to fit and is not part of the story.

    Parameters
    ----------
    nvme : Path
        Folder for strategies that offload to NVMe.

    Raises
    ------
    UserError
        When the plan finds no strategy that fits.
    """
    spec = find(case.model)
    micros = MICRO_BATCHES if case.micro_batch is None else (case.micro_batch,)
    works = [Work(micro_batch=micro, seq_len=case.seq_len, even=True) for micro in micros]
    if case.strategy == "auto":
        return _planned(_with_choice(case, spec, works, machine), spec, machine, nvme)
    recompute = case.checkpointing == "on"
    fitting = (work for work in works if estimate(spec, work, machine, case.strategy, checkpointing=recompute).fits)
    work = works[-1] if case.story else next(fitting, None)
    return _planned(replace(case, micro_batch=work.micro_batch), spec, machine, nvme) if work else None


def _with_choice(case: Case, spec: ModelSpec, works: list[Work], machine: Machine) -> Case:
    """The case with the strategy, checkpointing and micro-batch that the plan chooses."""
    choice = choose(spec, works, machine, strategies=[name for name, rung in LADDER.items() if not rung.on_nvme])
    if choice.best is None:
        needs = ", ".join(f"{name_of(candidate)} {_gib(candidate)}" for candidate in choice.estimates)
        raise UserError("; ".join([choice.reason, *choice.advice, f"needed: {needs}"]))
    return replace(
        case,
        strategy=choice.best.strategy,  # type: ignore[arg-type]
        checkpointing="on" if choice.best.checkpointing else "off",
        micro_batch=choice.work.micro_batch,
    )


def _gib(predicted: Estimate) -> str:
    return f"{predicted.gpu_bytes / GIB:,.1f} GiB per GPU and {predicted.host_bytes / GIB:,.1f} of host memory"


def _planned(case: Case, spec: ModelSpec, machine: Machine, nvme: Path) -> Settled:
    batch = (case.micro_batch or 1) * machine.ranks
    flags = RunConfig.of(
        model=case.model,
        data="sample",
        steps=STEPS,
        save_every=STEPS,
        keep_states=1,
        batch_size=batch,
        micro_batch_size=case.micro_batch,
        seq_len=case.seq_len,
        strategy=case.strategy,
        activation_checkpointing=case.checkpointing,
        nvme_path=str(nvme) if STRATEGIES[case.strategy].on_nvme else None,
        ranks_per_node=machine.ranks_per_node,
    )
    config = resolve(flags, spec)
    plan = make_plan(config, spec, machine, Counts(samples=batch, trainable=batch, sealed=0, exact=True))
    work = Work(micro_batch=plan.micro_batch_size, accumulation=plan.accumulation, seq_len=plan.seq_len, even=True)
    predicted = estimate(spec, work, machine, plan.strategy, checkpointing=plan.activation_checkpointing)
    return Settled(case, config, plan, predicted)


# --- speed -----------------------------------------------------------------------------------------------------------


def peak(gpu: str) -> float | None:
    """Peak floating-point operations per second in bf16 of the GPU with this name; None if unknown."""
    from wellread.train.watch.throughput import peak_flops

    return peak_flops(gpu, "bf16")


def flops_per_token(model: str, seq_len: int) -> float:
    """Floating-point operations of forward and backward per token: 6 N + 12 layers x width x length.

    N is the number of weights in matrix products, so without the input embedding, which is a look-up. Recomputation by
    activation checkpointing does not count (Chowdhery et al. 2022, PaLM, appendix B).
    """
    spec = find(model)
    return 6.0 * parameters(spec).products + 12.0 * spec.layers * spec.width * seq_len
