"""Free greedy generation after the true prefix: the score of Pythia (Biderman et al. 2023), on request.

The score of a sample is the share of suffix tokens that the text matches, each at its own place; 1: extractible. After
a first error the model continues its own text, so the score is usually below the share of tokens with rank 0. Scores
are kept in `eval/memorization/step-N.parquet`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from eval.continuations import first_run
from eval.kept import binding_of, refuse_damaged
from eval.kept_table import KeptTable
from eval.separation import Floats, Ints

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from wellread.checkpoint import Checkpoint
    from wellread.corpus.batch import Samples
    from wellread.run import RunDirectory

BATCH = 32
"""Prefixes that are continued together."""


@dataclass(frozen=True)
class Generated:
    """The scores of a checkpoint on disk."""

    table: KeptTable
    """Its settings: weights, prefix and suffix."""

    @classmethod
    def at(cls, run: RunDirectory, checkpoint: Checkpoint, prefix: int, suffix: int) -> Generated:
        """The file of a checkpoint; it may be missing."""
        settings = {"prefix": prefix, "suffix": suffix, "batch": BATCH} | binding_of(checkpoint)
        return cls(KeptTable(run.eval / "memorization" / f"{checkpoint.path.name}.parquet", settings))

    def read(self) -> dict[int, float]:
        """Sample -> score; empty if the file is missing or belongs to other settings."""
        table = self.table.read()
        if table is None:
            return {}
        return dict(zip(table["sample_id"].to_pylist(), table["matched"].to_pylist(), strict=True))

    def write(self, scores: dict[int, float]) -> None:
        """Replace the file."""
        import pyarrow as pa

        ids = sorted(scores)
        self.table.write(pa.table({"sample_id": np.array(ids, np.int64), "matched": [scores[i] for i in ids]}))


@dataclass(frozen=True)
class Work:
    """Whose suffixes are generated, and how."""

    samples: Samples
    skip: int
    """Target tokens of the prefix."""
    suffix: int
    """Tokens of the suffix."""
    device: str | None


def scores(
    run: RunDirectory, checkpoint: Checkpoint, file: Generated, work: Work, ids: Ints, progress: Callable[[int], None]
) -> Floats:
    """Score of each sample, float64[n]: kept ones are read, the others are generated and kept, batch by batch.

    Other processes that want the same file wait.

    Raises
    ------
    UserError
        When a file of the checkpoint is missing, altered or not listed.
    """
    by_id = file.read()
    if by_id.keys() >= set(ids.tolist()):
        progress(ids.size)
    else:
        with file.table.locked():
            by_id = _filled(run, checkpoint, file, work, ids, progress)
    return np.array([by_id[i] for i in ids.tolist()], dtype=np.float64)


def _filled(
    run: RunDirectory, checkpoint: Checkpoint, file: Generated, work: Work, ids: Ints, progress: Callable[[int], None]
) -> dict[int, float]:
    """All scores of a locked file after those of `ids` that it misses were added."""
    by_id = file.read()
    missing = np.array([i for i in ids.tolist() if i not in by_id], dtype=np.int64)
    progress(ids.size - missing.size)
    if missing.size:
        from wellread.models.load import loaded

        refuse_damaged(run, checkpoint)
        with loaded(checkpoint.model, work.device) as (model, device):
            ordered = missing[np.argsort(work.samples.lengths(missing), kind="stable")]
            for batch in np.array_split(ordered, -(-ordered.size // BATCH)):
                by_id |= dict(zip(batch.tolist(), generate(model, work, batch, device), strict=True))
                file.write(by_id)
                progress(batch.size)
    return by_id


def generate(model: nn.Module, work: Work, ids: Ints, device: str) -> list[float]:
    """Share of suffix tokens that greedy generation after the true prefix matches, for each sample."""
    from wellread.models.continuations import continuations

    rows = [work.samples.tokens(i).tolist() for i in ids.tolist()]
    starts = [first_run(work.samples.targets(i))[0] + work.skip for i in ids.tolist()]
    written = continuations(
        model,
        [row[:start] for row, start in zip(rows, starts, strict=True)],
        new_tokens=work.suffix,
        end=None,  # a token that ends a text may be followed by another text
        device=device,
    )
    return [
        float(np.mean(np.array(text) == np.array(row[start : start + work.suffix])))
        for text, row, start in zip(written, rows, starts, strict=True)
    ]
