"""Continuing from a checkpoint: finding it, and giving the engine and the guard what they had there."""

from __future__ import annotations

from collections.abc import Callable

from wellread import checkpoint as checkpoints
from wellread.checkpoint import Checkpoint
from wellread.planning.plan import Plan
from wellread.record.reader import Record
from wellread.run import RunDirectory
from wellread.train import guard as guards
from wellread.train import ranks
from wellread.train.engines import moments
from wellread.train.engines.base import Engine
from wellread.train.guard import Guard


def newest_checkpoint(run: RunDirectory) -> tuple[Checkpoint | None, list[str]]:
    """Newest valid checkpoint, and a line about each newer one that is damaged. Collective.

    Rank 0 finds it, and clears up after interrupted saves; the others are told which it is, and no lines.
    """
    found: Checkpoint | None = None
    passed_over: list[str] = []
    if ranks.rank() == 0:
        run.checkpoints.mkdir(exist_ok=True)
        checkpoints.clear_staging(run.checkpoints)
        found, passed_over = checkpoints.newest_valid(run.checkpoints)
    step = ranks.from_rank0(found.step if found else -1)
    return (checkpoints.open_checkpoint(run.checkpoints, step) if step >= 0 else None), passed_over


def restored_guard(run: RunDirectory, step: int, spike_factor: float | None) -> Guard:
    """The guard as it was at `step`, from what rank 0 reads in the record. Collective."""
    past = guards.past_of(Record.open(run.record), step) if ranks.rank() == 0 else []
    return Guard(spike_factor, ranks.gather_objects(past)[0])


def restore(engine: Engine, found: Checkpoint, updates: int, plan: Plan, say: Callable[[str], None]) -> None:
    """Give the engine the optimizer's state, whichever strategy and however many ranks saved it. Collective.

    Parameters
    ----------
    updates : int
        Steps that the optimizer had taken; at least 1.
    say : callable
        Called with a line when the state has to be converted.
    """
    if engine.fits(found.state):
        engine.load(found.state, updates)
        return
    saved_by = f"{found.manifest['strategy']} on {found.manifest['ranks']} ranks"
    say(f"its state was saved by {saved_by}: converting it for {plan.strategy} on {plan.ranks}")
    directory = found.path.parent
    converted = directory / f".{found.path.name}.converted"
    if ranks.rank() == 0 and (found.state / moments.ZERO).is_dir():
        moments.convert(found.state, converted)
    ranks.barrier()
    engine.adopt(found.model, moments.read(found.state, converted), updates)
    ranks.barrier()
    if ranks.rank() == 0:
        checkpoints.clear_staging(directory)
