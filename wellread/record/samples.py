"""The samples table of a corpus, read in chunks: sources, rows, categories, metrics."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.read import COMPILE_AGAIN
from wellread.errors import UserError
from wellread.files import damage_named, load_array

if TYPE_CHECKING:
    import pyarrow

IDS = ("sample_id", "document")
"""Numeric columns that are identifiers, not metrics."""
HIDDEN = ("segment", "sample_id", "digest", "document")
"""Columns that rows leave out."""
GROUPS = ("source", "category")
"""Columns by which readings are grouped."""
SHOWN = 12
"""Most sources that an error lists."""


@dataclass(frozen=True)
class SamplesTable:
    """samples.parquet. Without the file, results are empty; only `find_row` raises an error."""

    file: Path | None
    segments: Path | None = None
    """segments.parquet of a packed corpus."""
    text_metrics: Path | None = None
    """metrics.parquet, if the corpus was compiled with ``--metrics``; it has a row per sample, in the same order."""

    def rows(self, sample_ids: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Rows of the samples table in the order of `sample_ids`; rows of packed samples include their `segments`."""
        rows = _read_rows(self.file, sample_ids)
        if self.text_metrics is not None:
            for row, values in zip(rows, _read_rows(self.text_metrics, sample_ids), strict=True):
                row.update((name, value) for name, value in values.items() if name not in row)
        if self.segments is not None:
            for row, segments in zip(rows, self._segments_of(sample_ids), strict=True):
                row["segments"] = segments
        return rows

    def _segments_of(self, sample_ids: NDArray[np.int64]) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows of the segments table for each sample."""
        assert self.segments is not None
        offsets = load_array(self.segments.with_name("segment_offsets.npy"), COMPILE_AGAIN)
        counts = (offsets[sample_ids + 1] - offsets[sample_ids]).tolist()
        segment_ids = [np.arange(offsets[i], offsets[i + 1]) for i in sample_ids.tolist()]
        rows = iter(_read_rows(self.segments, np.concatenate([np.empty(0, dtype=np.int64), *segment_ids])))
        for count in counts:
            yield list(itertools.islice(rows, count))

    def chunks(self, columns: list[str]) -> Iterator[tuple[int, pyarrow.Table]]:
        """Yield chunks of the samples table and the text metrics: id of the first sample, and `columns`."""
        import pyarrow

        assert self.file is not None
        stored = _schema(self.file).names
        of_samples, of_metrics = ([name for name in columns if (name in stored) == has] for has in (True, False))
        values = _chunks(self.text_metrics, of_metrics) if of_metrics else iter(())
        pending: Any = None
        start = 0
        for table in _chunks(self.file, of_samples or ["sample_id"]):
            while of_metrics and (pending is None or pending.num_rows < table.num_rows):  # row groups end elsewhere
                part = next(values)
                pending = part if pending is None else pyarrow.concat_tables([pending, part])
            size = table.num_rows
            for name in of_metrics:
                table = table.append_column(name, pending[name].slice(0, size))
            pending = pending.slice(size) if of_metrics else None
            yield start, table
            start += size

    def unit_chunks(self, columns: list[str]) -> Iterator[pyarrow.Table]:
        """Yield `columns` in chunks: of the segments table if the corpus is packed, otherwise of the samples table."""
        return _chunks(self.segments or self.file, columns)

    @cached_property
    def metrics(self) -> list[str]:
        """Numeric columns of the samples table, then those of the text metrics."""
        import pyarrow

        types = pyarrow.types
        columns = [column for path in (self.file, self.text_metrics) if path for column in _schema(path)]
        names = [
            column.name
            for column in columns
            if column.name not in IDS and (types.is_integer(column.type) or types.is_floating(column.type))
        ]
        return list(dict.fromkeys(names))

    @cached_property
    def groups(self) -> list[str]:
        """Columns of `GROUPS` that the samples table has."""
        if self.file is None:
            return []
        stored = _schema(self.file).names
        return [name for name in GROUPS if name in stored]

    def find_row(self, text: str) -> list[int]:
        """Ids of the samples that contain a source row, written ``sample.jsonl:55`` or ``sample:55``.

        Raises
        ------
        UserError
            When there is no such source, or no sample contains the row; the message gives the range.
        """
        import pyarrow
        import pyarrow.compute as pc

        source, colon, digits = text.rpartition(":")
        if not colon or not digits.isdecimal():
            raise UserError(f"--row {text}: expected SOURCE:ROW, e.g. sample.jsonl:55")
        if self.file is None:
            raise UserError(f"--row {text}: the corpus has no samples table, so its source rows are unknown")
        matches: list[int] = []
        sources: set[str] = set()
        last = 0
        for start, table in self.chunks(["source", "rows"]):
            sources.update(pc.unique(table["source"].cast(pyarrow.string())).to_pylist())
            is_source = pc.is_in(table["source"].cast(pyarrow.string()), pyarrow.array([source, Path(source).stem]))
            rows = pc.list_flatten(table["rows"]).to_numpy()
            parents = pc.list_parent_indices(table["rows"]).to_numpy()
            from_source = is_source.to_numpy()[parents]
            last = max(last, int(rows[from_source].max(initial=0)))
            matches += (start + np.unique(parents[from_source & (rows == int(digits))])).tolist()
        if not last:
            raise UserError(
                f"--row {text}: no source {source!r}; the sources of the corpus are {_listed_names(sorted(sources))}"
            )
        if not matches:
            raise UserError(f"--row {text}: no sample comes from that row; {source} has rows 1 … {last}")
        return matches


def _listed_names(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _chunks(path: Path | None, columns: list[str]) -> Iterator[pyarrow.Table]:
    import pyarrow
    import pyarrow.parquet

    assert path is not None
    with damage_named(path, COMPILE_AGAIN):
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(1 << 16, columns=columns)
    while True:
        with damage_named(path, COMPILE_AGAIN):  # without the caller's code, which has errors of its own
            batch = next(batches, None)
        if batch is None:
            return
        yield pyarrow.Table.from_batches([batch])


def _schema(path: Path) -> pyarrow.Schema:
    import pyarrow.parquet

    with damage_named(path, COMPILE_AGAIN):
        return pyarrow.parquet.read_schema(path)


def _read_rows(path: Path | None, numbers: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Rows of a table in the order of `numbers`, read one row group after the other; empty without a table."""
    if path is None:
        return []
    with damage_named(path, COMPILE_AGAIN):
        return _rows(path, numbers)


def _rows(path: Path, numbers: NDArray[np.int64]) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    columns = [name for name in file.schema_arrow.names if name not in HIDDEN]
    rows: dict[int, dict[str, Any]] = {}
    start = 0
    for group in range(file.num_row_groups):
        stop = start + file.metadata.row_group(group).num_rows
        ids = np.unique(numbers[(numbers >= start) & (numbers < stop)])
        if len(ids):
            table = file.read_row_group(group, columns=columns).take(pyarrow.array(ids - start))
            rows.update(zip(ids.tolist(), table.to_pylist(), strict=True))
        start = stop
    return [dict(rows[i]) for i in numbers.tolist()]
