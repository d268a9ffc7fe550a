"""How well a checkpoint predicts sealed samples, kept in `eval/generations/sealed-step-N.parquet`.

Special tokens, such as the one that ends a text, have no bytes, so their losses are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.intervals import linearized
from eval.separation import Floats, Ints
from wellread.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from eval.kept_table import KeptTable
    from wellread.checkpoint import Checkpoint
    from wellread.corpus.read import Corpus
    from wellread.corpus.segments import Segments
    from wellread.corpus.tokenizer import Tokenizer
    from wellread.run import RunDirectory

BATCH_TOKENS = 8192
"""Tokens of a forward pass, including padding."""
COLUMNS = ("sample_id", "n_targets", "n_bytes", "loss")


@dataclass(frozen=True, kw_only=True)
class SealedLosses:
    """Losses of sealed samples under one checkpoint."""

    sample_id: Ints
    n_targets: Ints
    """Targets of each sample that are not special tokens, int64[n]."""
    n_bytes: Ints
    """Bytes of the text of these targets as UTF-8, int64[n]."""
    loss: Floats
    """Sum of -log p of these targets, in nats, float64[n]."""

    @property
    def per_token(self) -> Floats:
        """The mean is the loss per target token of all samples together, in nats; see `linearized`."""
        return linearized(self.loss, self.n_targets.astype(np.float64))

    @property
    def bits_per_byte(self) -> Floats:
        """The mean is the bits per byte of all samples together; see `linearized`."""
        return linearized(self.loss / math.log(2), self.n_bytes.astype(np.float64))

    @property
    def paired_bits_per_byte(self) -> Floats:
        """Loss of each sample in bits / mean number of bytes, which has the same mean as `bits_per_byte`.

        For differences between checkpoints: the number of bytes is the same at all of them.
        """
        return np.asarray(self.loss / math.log(2) / self.n_bytes.mean())

    @classmethod
    def read(cls, file: KeptTable) -> SealedLosses | None:
        """Losses in a file; None without a file that belongs to its settings."""
        table = file.read()
        return None if table is None else cls(**{name: table.column(name).to_numpy() for name in COLUMNS})

    def write(self, file: KeptTable) -> None:
        """Replace a file."""
        import pyarrow as pa

        file.write(pa.table({name: getattr(self, name) for name in COLUMNS}))


def path(run: RunDirectory, checkpoint: Checkpoint) -> Path:
    """File of the losses of a checkpoint."""
    return run.eval / "generations" / f"sealed-{checkpoint.path.name}.parquet"


def compute(
    model: nn.Module,
    samples: Corpus | Segments,
    ids: Ints,
    tokenizer: Tokenizer,
    device: str,
    progress: Callable[[int], None],
) -> SealedLosses:
    """Losses of samples; those without a single byte of text are left out.

    Raises
    ------
    UserError
        When a loss is not finite, because the run has diverged, or no sample has any text.
    """
    import torch

    from wellread.models.loss import sample_losses
    from wellread.models.score import by_length

    special = torch.tensor(sorted(tokenizer.special_ids))
    losses, targets, n_bytes = (np.zeros(ids.size) for _ in range(3))
    for places in by_length(samples.lengths(ids), BATCH_TOKENS):
        batch = _without(special, samples, ids[places])
        with torch.inference_mode():
            losses[places] = sample_losses(model, *batch.to(device).inputs).double().cpu().numpy()
        targets[places] = batch.n_targets()
        texts = [tokenizer.decode(row[mask].tolist()) for row, mask in zip(batch.tokens, batch.targets, strict=True)]
        n_bytes[places] = [len(text.encode()) for text in texts]
        progress(len(places))
    if not np.isfinite(losses).all():
        raise UserError(f"the loss of sample {ids[np.argmin(np.isfinite(losses))]} is not finite: the run has diverged")
    has_text = n_bytes > 0
    if not has_text.any():
        raise UserError(
            f"{samples.path}: no sealed sample has a token of text, so there is no loss per byte; "
            "run wellread verify on its run to find altered files"
        )
    return SealedLosses(
        sample_id=ids[has_text],
        n_targets=targets[has_text].astype(np.int64),
        n_bytes=n_bytes[has_text].astype(np.int64),
        loss=losses[has_text],
    )


def _without(special: Any, samples: Corpus | Segments, ids: Ints) -> Any:
    """A batch whose targets leave special tokens out."""
    from dataclasses import replace

    import torch

    from wellread.corpus.batch import collate

    batch = collate(samples, ids)
    return replace(batch, targets=batch.targets & ~torch.isin(batch.tokens, special))
