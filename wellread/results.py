"""The one result schema: what was measured at which checkpoint, and how sure it is.

Every evaluation writes its table through this module (`eval/*.parquet` of a run directory), so that any two
results can be put side by side. Scores of single samples, from which results are made, lie next to them.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import numpy.typing as npt

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
    ValueError
        When the file is not Parquet or its columns are not those of `Result`.
    """
    table = _read_table(path)
    missing = [name for name in schema().names if name not in table.column_names]
    if missing:
        raise ValueError(f"{path}: not a result table, it lacks {', '.join(missing)}; run the evaluation again")
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


def show(results: Sequence[Result], *, file: TextIO | None = None) -> None:
    """Print a result table: drawn by rich on a terminal, plain aligned text when piped."""
    file = file or sys.stdout
    if not file.isatty():
        print(plain_table(results), file=file)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(_title(results)), title_justify="left", header_style="bold")
    for name, is_number in _COLUMNS.items():
        table.add_column(name, justify="right" if is_number else "left", no_wrap=True)
    for result in results:
        table.add_row(*(Text(cell) for cell in _cells(result)))
    Console(file=file).print(table)


def plain_table(results: Sequence[Result]) -> str:
    """The table as aligned text, one line a result below a title and a header."""
    rows = [list(_COLUMNS), *(_cells(result) for result in results)]
    columns = []
    for cells, is_number in zip(zip(*rows, strict=True), _COLUMNS.values(), strict=True):
        width = max(map(len, cells))
        columns.append([cell.rjust(width) if is_number else cell.ljust(width) for cell in cells])
    return "\n".join([_title(results), *("  ".join(row).rstrip() for row in zip(*columns, strict=True))])


def number(value: float) -> str:
    """A value for people: counts with thousands separators, everything else with four decimals."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 2 else f"{value:.4f}"


_TEXTS, _NUMBERS = ("task", "group", "metric"), ("step", "value", "95% interval", "n")
_COLUMNS = {name: name in _NUMBERS for name in ("step", *_TEXTS, *_NUMBERS[1:])}
"""Columns on screen, and whether each holds numbers."""


def _cells(result: Result) -> list[str]:
    has_interval = result.ci_low is not None and result.ci_high is not None
    interval = f"[{result.ci_low:.4f}, {result.ci_high:.4f}]" if has_interval else ""
    names = [result.task, result.group, result.metric]
    return [f"{result.step:,}", *names, number(result.value), interval, f"{result.n:,}"]


def _title(results: Sequence[Result]) -> str:
    pairs = dict.fromkeys((result.run, result.model) for result in results)
    return "; ".join(f"{run} ({model})" for run, model in pairs) or "no results"


def _write_table(path: Path, table: Any) -> None:
    import pyarrow.parquet as pq

    from wellread.runs import write_atomic

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
        raise ValueError(f"{path}: no such file; run the evaluation first") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file; delete it and run the evaluation again") from error
