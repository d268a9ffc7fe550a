"""The one result schema: what was measured at which checkpoint, and how sure it is.

Every evaluation writes its table through this module (`eval/*.parquet` of a run directory), so that any two
results can be put side by side. Scores of single samples, from which results are made, lie next to them.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wellread.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Result:
    """One number about one checkpoint."""

    run: str
    """Name of the run directory."""
    model: str
    """Name or path of the model that the run trained."""
    step: int
    """Batches read by the checkpoint."""
    tokens: int
    """Tokens read by the checkpoint."""
    task: str
    """What was asked, e.g. `membership/loss`."""
    metric: str
    """What was measured, e.g. `auc`."""
    group: str
    """The samples it was measured on, e.g. `read`."""
    shots: int | None = None
    """Examples given in the prompt; None where the task has no prompt."""
    value: float
    """The measurement."""
    stderr: float | None = None
    """Its standard error; None where it is a count."""
    ci_low: float | None = None
    """Lower end of its 95% interval."""
    ci_high: float | None = None
    """Upper end of its 95% interval."""
    n: int
    """Samples that it rests on."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Log-likelihoods of samples under one checkpoint, in the order of their ids.

    `sample_id` int64[n]; `n_targets` int64[n], scored tokens; `log_likelihood` float64[n], nats, summed over them.
    """

    sample_id: npt.NDArray[np.int64]
    n_targets: npt.NDArray[np.int64]
    log_likelihood: npt.NDArray[np.float64]

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Mean log-likelihood per target token, nats, float64[n]; NaN where a sample has no target."""
        missing = np.full(self.sample_id.size, np.nan)
        return np.asarray(np.divide(self.log_likelihood, self.n_targets, out=missing, where=self.n_targets > 0))

    def at(self, sample_ids: npt.NDArray[np.int64]) -> "Scores":
        """The scores of these samples, which must all be here, in this order."""
        rows = np.searchsorted(self.sample_id, sample_ids)
        return Scores(sample_id=sample_ids, n_targets=self.n_targets[rows], log_likelihood=self.log_likelihood[rows])

    def merged(self, other: "Scores") -> "Scores":
        """These and the other's, which must be of other samples, ascending by id."""
        columns = {f.name: np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(Scores)}
        order = np.argsort(columns["sample_id"])
        return Scores(**{name: column[order] for name, column in columns.items()})

    @classmethod
    def empty(cls) -> "Scores":
        """Scores of nothing."""
        none = np.zeros(0, dtype=np.int64)
        return cls(sample_id=none, n_targets=none, log_likelihood=none.astype(np.float64))


def schema() -> "pa.Schema":
    """The Arrow schema of a result table: the fields of `Result` in their order."""
    import pyarrow as pa

    text, whole, real = pa.string(), pa.int64(), pa.float64()
    types = {"run": text, "model": text, "step": whole, "tokens": whole, "task": text, "metric": text, "group": text}
    types |= {"shots": whole, "value": real, "stderr": real, "ci_low": real, "ci_high": real, "n": whole}
    optional = {"shots", "stderr", "ci_low", "ci_high"}
    return pa.schema([pa.field(name, kind, nullable=name in optional) for name, kind in types.items()])


def write(path: Path, results: Iterable[Result]) -> None:
    """Write a result table as Parquet, all of it or nothing."""
    import pyarrow as pa

    _write_table(path, pa.Table.from_pylist([asdict(result) for result in results], schema=schema()))


def read(path: Path) -> list[Result]:
    """Read a result table.

    Raises
    ------
    UserError
        When the file is not Parquet or its columns are not those of `Result`.
    """
    table = _read_table(path)
    missing = [name for name in schema().names if name not in table.column_names]
    if missing:
        raise UserError(f"{path}: not a result table, it lacks {', '.join(missing)}; run the evaluation again")
    return [Result(**row) for row in table.select(schema().names).to_pylist()]


def write_scores(path: Path, scores: Scores, *, head: str, checkpoint: str) -> None:
    """Write scores of samples as Parquet, together with what they belong to.

    Parameters
    ----------
    head
        Record head of the checkpoint, hex.
    checkpoint
        Hash of the checkpoint's manifest, hex: step 0 has the same head in every run, but not the same weights.
    """
    import pyarrow as pa

    columns = {field.name: getattr(scores, field.name) for field in fields(Scores)}
    _write_table(path, pa.table(columns).replace_schema_metadata({"record_head": head, "checkpoint": checkpoint}))


def read_scores(path: Path, *, head: str, checkpoint: str) -> Scores | None:
    """Read scores written by `write_scores`; None when there are none or they belong to another checkpoint."""
    if not path.exists():
        return None
    table = _read_table(path)
    if table.schema.metadata != {b"record_head": head.encode(), b"checkpoint": checkpoint.encode()}:
        return None
    return Scores(**{field.name: table.column(field.name).to_numpy() for field in fields(Scores)})


def _write_table(path: Path, table: Any) -> None:
    import pyarrow.parquet as pq

    from wellread.files import write_atomic

    buffer = BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())


def _read_table(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; run the evaluation first") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file; delete it and run the evaluation again") from error
