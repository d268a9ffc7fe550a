"""The schema of results: what was measured at which checkpoint, and its confidence interval.

Every evaluation writes its table with this module (`eval/*.parquet` of a run directory), so all results can be
compared. The scores of single samples, from which results are computed, are stored next to them.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """Evaluation and method, e.g. `membership/loss`."""
    metric: str
    """What was measured, e.g. `auc`."""
    group: str
    """Group of samples that was measured, e.g. `read`."""
    shots: int | None = None
    """Examples in the prompt; None where the task has no prompt."""
    value: float
    """The measured value."""
    stderr: float | None = None
    """Standard error of the value; None for counts."""
    ci_low: float | None = None
    """Lower end of the 95% confidence interval."""
    ci_high: float | None = None
    """Upper end of the 95% confidence interval."""
    n: int
    """Number of samples that were measured."""


def schema() -> "pa.Schema":
    """The Arrow schema of a result table: the fields of `Result` in order."""
    import pyarrow as pa

    text, int64, real = pa.string(), pa.int64(), pa.float64()
    types = {"run": text, "model": text, "step": int64, "tokens": int64, "task": text, "metric": text, "group": text}
    types |= {"shots": int64, "value": real, "stderr": real, "ci_low": real, "ci_high": real, "n": int64}
    optional = {"shots", "stderr", "ci_low", "ci_high"}
    return pa.schema([pa.field(name, kind, nullable=name in optional) for name, kind in types.items()])


def write(path: Path, results: Iterable[Result]) -> None:
    """Write a result table as Parquet, atomically."""
    import pyarrow as pa

    write_table(path, pa.Table.from_pylist([asdict(result) for result in results], schema=schema()))


def read(path: Path) -> list[Result]:
    """Read a result table.

    Raises
    ------
    UserError
        When the file is not Parquet or its columns are not those of `Result`.
    """
    table = read_table(path)
    missing = [name for name in schema().names if name not in table.column_names]
    if missing:
        raise UserError(f"{path}: not a result table (no column {', '.join(missing)}); run the evaluation again")
    return [Result(**row) for row in table.select(schema().names).to_pylist()]


WRITING: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
"""How tables are written: the values of each page have a checksum."""
DIGEST = b"digest"
"""Key of the metadata: a hash of what has no checksum of its own."""


def write_table(path: Path, table: Any) -> None:
    """Write an Arrow table as Parquet, atomically, so that `read_table` notices an altered byte."""
    import pyarrow.parquet as pq

    from wellread.files import write_atomic

    buffer = BytesIO()
    pq.write_table(table.replace_schema_metadata(with_digest(table.schema).metadata), buffer, **WRITING)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())


def with_digest(schema: Any) -> Any:
    """A schema whose metadata have a digest of its columns and of its other metadata, as Parquet stores them."""
    import pyarrow.parquet as pq

    pq.write_metadata(schema, buffer := BytesIO())
    return schema.with_metadata({**(schema.metadata or {}), DIGEST: _digest(pq.read_schema(buffer))})


def read_table(path: Path) -> Any:
    """Read a Parquet table of an evaluation; UserError when it is missing, unreadable or altered."""
    file = open_table(path)
    with file, unreadable_named(path):
        return file.read()


def open_table(path: Path) -> Any:
    """Open a Parquet file of an evaluation, to read it within `unreadable_named`; checksums are compared on reading.

    Files of older versions have no checksums.

    Raises
    ------
    UserError
        When it is missing or unreadable, or names or types of columns or metadata are altered.
    """
    import pyarrow.parquet as pq

    with unreadable_named(path):
        file = pq.ParquetFile(path, page_checksum_verification=True)
        if (file.schema_arrow.metadata or {}).get(DIGEST, digest := _digest(file.schema_arrow)) != digest:
            raise ValueError("another digest")
    return file


def _digest(schema: Any) -> bytes:
    metadata = sorted((key, value) for key, value in (schema.metadata or {}).items() if key != DIGEST)
    columns = [(field.name, str(field.type)) for field in schema]
    return hashlib.sha256(repr((columns, metadata)).encode()).hexdigest().encode()


@contextmanager
def unreadable_named(path: Path) -> Iterator[None]:
    """Turn errors of reading a Parquet table of an evaluation into a UserError."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; run the evaluation first") from error
    except (pa.ArrowException, OSError, ValueError) as error:  # also of text that is not UTF-8 any more
        raise UserError(f"{path}: not a readable Parquet file; delete it and run the evaluation again") from error
