"""Resume from a checkpoint: find it, and restore the engine and the guard."""

from __future__ import annotations

from collections.abc import Callable

from wellread import checkpoint as checkpoints
from wellread.checkpoint import Checkpoint
from wellread.errors import UserError
from wellread.planning.plan import Plan
from wellread.record.reader import Record
from wellread.run import RunDirectory
from wellread.train import guard as guards
from wellread.train import ranks
from wellread.train.engines import moments
from wellread.train.engines.base import Engine
from wellread.train.guard import Guard


def newest_checkpoint(run: RunDirectory) -> tuple[Checkpoint | None, dict[str, str]]:
    """Newest valid checkpoint, and what is wrong with each newer one, by name. Collective.

    Rank 0 searches for it, and removes the files of interrupted saves. The other ranks return the same checkpoint and
    no damage.

    Raises
    ------
    UserError
        When training has advanced, but no checkpoint is left from which it can continue: a new start would delete the
        record.
    """
    newest: Checkpoint | None = None
    damaged: dict[str, str] = {}
    if ranks.rank() == 0:
        run.checkpoints.mkdir(exist_ok=True)
        checkpoints.clear_staging(run.checkpoints)
        newest, damaged = checkpoints.newest_valid(run.checkpoints)
        if newest is None and any(path.name != checkpoints.name_of(0) for path in run.checkpoints.glob("step-*")):
            reason = next(iter(damaged.values()), "their states are missing")
            raise UserError(
                f"{run.checkpoints}: no checkpoint can be resumed ({reason}); restore it, or choose another --out"
            )
    step = ranks.from_rank0(newest.step if newest else -1)
    return (checkpoints.open_checkpoint(run.checkpoints, step) if step >= 0 else None), damaged


def restored_guard(run: RunDirectory, step: int, spike_factor: float | None) -> Guard:
    """The guard as it was at `step`; rank 0 reads it from the record. Collective."""
    past = guards.past_of(Record.open(run.record), step) if ranks.rank() == 0 else []
    return Guard(spike_factor, [(loss, skipped) for loss, skipped in ranks.gather_objects(past)[0]])


def restore(engine: Engine, checkpoint: Checkpoint, updates: int, plan: Plan, say: Callable[[str], None]) -> None:
    """Load the optimizer state into the engine; any strategy and number of ranks may have saved it. Collective.

    Parameters
    ----------
    updates : int
        Number of steps that the optimizer had taken; at least 1.
    say : callable
        Called with a line if the state must be converted.
    """
    if engine.fits(checkpoint.state):
        engine.load(checkpoint.state, updates)
        return
    saved_by = f"{checkpoint.manifest['strategy']} on {checkpoint.manifest['ranks']} ranks"
    say(f"its state was saved by {saved_by}: converting it for {plan.strategy} on {plan.ranks}")
    directory = checkpoint.path.parent
    converted = directory / f".{checkpoint.path.name}.converted"
    if ranks.rank() == 0 and (checkpoint.state / moments.ZERO).is_dir():
        moments.convert(checkpoint.state, converted)
    ranks.barrier()
    engine.adopt(checkpoint.model, moments.read(checkpoint.state, converted), updates)
    ranks.barrier()
    if ranks.rank() == 0:
        checkpoints.clear_staging(directory)
