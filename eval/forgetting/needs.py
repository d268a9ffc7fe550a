"""What a run must have so that a recorded loss is the loss before reading."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wellread.errors import UserError

if TYPE_CHECKING:
    from wellread.run import RunDirectory

UNUSED = ("summary_", "classifier_")
"""Beginnings of settings of heads that a causal language model does not have."""


def sealed_samples(run: RunDirectory) -> None:
    """At least one sealed sample."""
    from wellread.corpus.read import Corpus

    corpus = Corpus.open(run.corpus)
    if corpus.n == corpus.n_trainable:
        raise UserError(
            f"{run.path}: no sample is sealed, so the loss without reading is not known; train with --holdout above 0"
        )


def one_loss_per_row(run: RunDirectory) -> None:
    """Samples that are not packed."""
    if run.config().data.pack:
        raise UserError(
            f"{run.path}: its samples are packed (--pack), and the record has one loss per packed sample, not one per "
            "row; train without --pack"
        )


def sealed_losses(run: RunDirectory) -> None:
    """Losses of sealed samples at two steps or more."""
    from wellread.record.reader import Record

    files = Record.open(run.record).sealed_files
    steps = {step for file in files for step in (file["from"], file["to"])}
    if not files:
        raise UserError(
            f"{run.record}: no losses of sealed samples (sealed-*.parquet); the run is of an older version, train again"
        )
    if len(steps) < 2:
        raise UserError(f"{run.record}: losses of sealed samples at one step only; train further")


def no_dropout(run: RunDirectory) -> None:
    """A model that computes the same loss in training as in evaluation."""
    from wellread.checkpoint import list_checkpoints
    from wellread.models.load import Source

    config = run.config()
    values = {"--lora.dropout": config.lora.dropout} if config.lora.rank else {}
    if not any(values.values()):
        values |= dropouts(Source.of(list_checkpoints(run.checkpoints)[-1].model).config.to_dict())
    for name, value in values.items():
        if value:
            raise UserError(
                f"{run.path}: trained with dropout ({name} {value:g}), so its recorded losses are higher than those "
                "of a checkpoint; train without dropout"
            )


def dropouts(settings: dict[str, Any]) -> dict[str, float]:
    """Each setting of a model's configuration that is a probability of dropout: name -> value."""
    return {
        name: float(value)
        for name, value in settings.items()
        if "drop" in name and not name.startswith(UNUSED) and isinstance(value, int | float)
    }
