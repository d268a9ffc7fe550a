"""Norms of gradients of samples, kept in files of their own, `eval/gradients/`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eval.kept import How, Progress, binding_of, fill_checked
from eval.separation import Floats, Ints
from eval.token_store import SampleFile

if TYPE_CHECKING:
    import pyarrow as pa

    from eval.progress import Reporter
    from wellread.checkpoint import Checkpoint
    from wellread.corpus.batch import Samples
    from wellread.run import RunDirectory

FOLDER = "gradients"
COLUMN = "norm"


@dataclass(frozen=True, kw_only=True, eq=False)
class Norms:
    """Norm of the gradient of each sample's mean loss."""

    sample_id: Ints
    """(samples,)."""
    norm: Floats
    """(samples,), nats per target token; NaN for a sample without a target."""

    def at(self, ids: Ints) -> Norms:
        """The given samples, in the given order; all of them must be present."""
        order = np.argsort(self.sample_id, kind="stable")
        return Norms(sample_id=ids, norm=self.norm[order[np.searchsorted(self.sample_id, ids, sorter=order)]])


class NormFile(SampleFile[Norms]):
    """Norms of gradients of samples under one model."""

    def joined(self, parts: Sequence[Norms]) -> Norms:
        """The samples of all parts."""
        ids = np.concatenate([np.zeros(0, np.int64), *(part.sample_id for part in parts)])
        return Norms(sample_id=ids, norm=np.concatenate([np.zeros(0), *(part.norm for part in parts)]))

    def columns(self) -> Mapping[str, pa.DataType]:
        """One norm per sample."""
        import pyarrow as pa

        return {COLUMN: pa.float64()}

    def to_table(self, part: Norms) -> pa.Table:
        """One row per sample."""
        import pyarrow as pa

        return pa.table({"sample_id": part.sample_id, COLUMN: part.norm})

    def from_table(self, table: pa.Table) -> Norms:
        """Norms from one row per sample."""
        return Norms(sample_id=table.column("sample_id").to_numpy(), norm=table.column(COLUMN).to_numpy())


def norms_of(
    run: RunDirectory, checkpoint: Checkpoint, samples: Samples, ids: Ints, reporter: Reporter, how: How
) -> NormFile:
    """The file with the norms of these samples at `checkpoint`: the missing ones are computed and added.

    Parameters
    ----------
    ids
        Samples, int64[n], ascending.

    Raises
    ------
    UserError
        When the checkpoint has a file that its manifest does not list, or one that is missing or altered, or when its
        weights do not fit the device.
    """
    path = run.eval / FOLDER / how.file_name(checkpoint.path.name)
    file = NormFile(path, binding_of(checkpoint) | {"dtype": how.dtype})

    def compute(missing: Ints, progress: Progress) -> Iterator[Norms]:
        return run_backward(checkpoint.model, samples, missing, how, progress)

    return fill_checked(file, (run, checkpoint), ids, reporter, compute, again=how.verify)


def run_backward(directory: Path, samples: Samples, ids: Ints, how: How, progress: Progress) -> Iterator[Norms]:
    """Yield norms of the gradients of samples under the model in `directory`, a part of them at a time."""
    from wellread.processes import importing

    with importing():
        import transformers.modeling_utils  # noqa: F401 (AutoModel imports it later)

    from wellread.models.gradients import gradient_norms
    from wellread.models.load import loaded

    with loaded(directory, how.device) as (model, where):
        for members, norms in gradient_norms(model, samples, ids, dtype=how.dtype, progress=progress, device=where):
            yield Norms(sample_id=members, norm=norms)
