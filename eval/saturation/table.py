"""The table of saturation: one row per metric, with a schema of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wellread.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Row:
    """The verdict about one metric."""

    metric: str
    """Group and metric, e.g. `greedy/words`."""
    verdict: str
    """`saturated`, `not reached`, `no change`, `cannot tell` or `peaked`."""
    step: int | None
    """Step of the saturation or of the peak; None for the other verdicts."""
    tokens: int | None
    """Tokens read until then."""
    learning_rate: float | None
    """Learning rate of the last batch until then."""
    n: int
    """Number of items."""
    p: float
    """P-value of the test that decided: see `eval.saturation.verdict.judge`."""


def schema() -> pa.Schema:
    """The Arrow schema of the table: the fields of `Row` in order."""
    import pyarrow as pa

    text, int64, real = pa.string(), pa.int64(), pa.float64()
    types = {"metric": text, "verdict": text, "step": int64, "tokens": int64, "learning_rate": real}
    types |= {"n": int64, "p": real}
    optional = {"step", "tokens", "learning_rate"}
    return pa.schema([pa.field(name, kind, nullable=name in optional) for name, kind in types.items()])


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write the table as Parquet, atomically."""
    import pyarrow as pa

    from wellread.results import write_table

    write_table(path, pa.Table.from_pylist([asdict(row) for row in rows], schema=schema()))


def read(path: Path) -> list[Row]:
    """Read the table.

    Raises
    ------
    UserError
        When the file is not Parquet or its columns are not those of `Row`.
    """
    from wellread.results import read_table

    table = read_table(path)
    if missing := [name for name in schema().names if name not in table.column_names]:
        raise UserError(f"{path}: no column {', '.join(missing)}; run wellread saturation again")
    return [Row(**row) for row in table.select(schema().names).to_pylist()]
