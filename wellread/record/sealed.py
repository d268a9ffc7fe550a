"""Losses of sealed samples that a run measured while it trained: `record/sealed-*.parquet`, outside the chain."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wellread.corpus import arrow

COLUMNS = ("step", "sample_id", "n_targets", "loss")


@dataclass(frozen=True, kw_only=True)
class SealedLosses:
    """Losses of some sealed samples under the weights of one step, in evaluation mode."""

    step: int
    """Number of batches that these weights have read."""
    sample_ids: NDArray[np.int64]
    """(n,), ascending, each once."""
    n_targets: NDArray[np.int64]
    losses: NDArray[np.float32]
    """(n,), mean over each sample's target tokens, in nats."""


NONE = SealedLosses(
    step=0, sample_ids=np.zeros(0, np.int64), n_targets=np.zeros(0, np.int64), losses=np.zeros(0, np.float32)
)
"""A measurement without samples."""


def file_name(first: int, last: int) -> str:
    """Name of the file with the measurements from step `first` to step `last`, both included."""
    return f"sealed-{first:08d}-{last:08d}.parquet"


def to_parquet(measurements: list[SealedLosses]) -> bytes:
    """Serialize measurements, ascending by step, to the content of a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    steps = np.repeat([each.step for each in measurements], [len(each.sample_ids) for each in measurements])
    table = pyarrow.table(
        {
            "step": arrow.numbers(steps, np.int64),
            "sample_id": arrow.numbers(np.concatenate([each.sample_ids for each in measurements]), np.int64),
            "n_targets": arrow.numbers(np.concatenate([each.n_targets for each in measurements]), np.int32),
            "loss": arrow.numbers(np.concatenate([each.losses for each in measurements]), np.float32),
        }
    )
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd", use_dictionary=["step"])
    return buffer.getvalue()
