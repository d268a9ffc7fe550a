"""Requirements of evaluations: each function raises UserError when a run does not meet it."""

from __future__ import annotations

import os
from collections.abc import Callable

from wellread.errors import NOT_ALLOWED, UserError
from wellread.run import RunDirectory

Need = Callable[[RunDirectory], None]


def a_checkpoint(run: RunDirectory) -> None:
    """At least one checkpoint."""
    from wellread.checkpoint import list_checkpoints

    if not list_checkpoints(run.checkpoints):
        raise UserError(f"{run.path}: no checkpoint yet; wait until the run has saved one")


def a_writable_folder(run: RunDirectory) -> None:
    """A folder `eval/` in which results can be written: noticed before the models are read, not after."""
    folder = run.eval if run.eval.is_dir() else run.path  # a call that is refused later leaves no folder
    file = folder / f".writable.{os.getpid()}.tmp"
    try:
        file.touch()
        file.unlink()
    except OSError as error:
        if error.errno not in NOT_ALLOWED:
            raise
        raise UserError(
            f"{run.eval}: results cannot be written ({error.strerror}); make it writable, or evaluate a copy of the run"
        ) from None


def sealed_samples(run: RunDirectory) -> None:
    """At least two sealed samples."""
    from wellread.corpus.read import Corpus

    corpus = Corpus.open(run.corpus)
    if corpus.n - corpus.n_trainable < 2:
        raise UserError(f"{run.path}: has fewer than two sealed samples; train with --holdout above 0")


def a_whole_record(run: RunDirectory) -> None:
    """A record that contains every batch that the last checkpoint has read."""
    from wellread.checkpoint import list_checkpoints
    from wellread.record.reader import Record

    record, last = Record.open(run.record), list_checkpoints(run.checkpoints)[-1].step
    if record.batches < last:
        raise UserError(
            f"{run.record}: has {record.batches} batches, but step-{last} has read {last}; run wellread verify"
        )
