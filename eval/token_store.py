"""Files of values of samples under a model, such as token columns: written in parts, so that a stop loses little."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

import numpy as np

from eval.locks import locked
from eval.separation import Ints
from wellread.results import WRITING, open_table, unreadable_named, with_digest
from wellread.tokens import COLUMNS, Tokens

if TYPE_CHECKING:
    import pyarrow as pa


class Part(Protocol):
    """Values of some samples."""

    @property
    def sample_id(self) -> Ints:
        """(samples,)."""

    def at(self, ids: Ints, /) -> Self:
        """The given samples, in the given order."""


PartType = TypeVar("PartType", bound=Part)


@dataclass(frozen=True)
class SampleFile(ABC, Generic[PartType]):
    """Values of samples under one model, kept in one file."""

    path: Path
    belongs_to: Mapping[str, str]
    """Metadata that binds the file to the model and to how it was run; a file with other metadata is replaced."""

    @cached_property
    def sample_id(self) -> Ints:
        """Samples that the file has, ascending; empty when it is missing or belongs to something else."""
        return np.unique(np.concatenate([np.zeros(0, np.int64), *(ids for _, ids in self._groups)]))

    @abstractmethod
    def joined(self, parts: Sequence[PartType]) -> PartType:
        """The samples of all parts, one part after the other."""

    @abstractmethod
    def columns(self) -> Mapping[str, pa.DataType]:
        """Columns of the file in addition to `sample_id`, and their types."""

    @abstractmethod
    def to_table(self, part: PartType) -> pa.Table:
        """A part as a table: `sample_id` and `columns`."""

    @abstractmethod
    def from_table(self, table: pa.Table) -> PartType:
        """A part from a table."""

    def read(self, ids: Ints) -> PartType:
        """Values of these samples, in the given order; all of them must be in the file."""
        if not ids.size:
            return self.joined([])
        parts, low, high = list[PartType](), ids.min(), ids.max()
        for group, members in self._groups:
            if members.size and members.min() <= high and members.max() >= low and np.isin(members, ids).any():
                part = self.from_table(group.read())
                parts.append(part.at(members[np.isin(members, ids)]))
        return self.joined(parts).at(ids)

    def write(self, parts: Iterator[PartType]) -> None:
        """Add samples: each part is written at once, and all are joined with the file at the end."""
        for number, part in enumerate(parts, len(self._part_files)):
            self._write(self._parts / f"{number:06}.parquet", iter([self.to_table(part)]))
        self._forget()
        if self._part_files:
            self._join()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of this file, for which other processes wait, and forget what the file had before."""
        with locked(self.path):
            self._forget()
            yield

    def recover(self) -> None:
        """Join the parts that an interrupted process has left with the file; remove those of another model."""
        if not self._part_files:
            return
        for path in self._part_files:
            if not self._is_ours(open_table(path)):
                path.unlink()
        self._forget()
        self._join()

    def _join(self) -> None:
        """Copy all row groups into one file, each sample once; memory is that of one row group."""
        self._write(self.path, self._rows_once())
        shutil.rmtree(self._parts)
        self._forget()

    def _rows_once(self) -> Iterator[pa.Table]:
        written = np.zeros(0, np.int64)
        for group, members in self._groups:
            fresh = ~np.isin(members, written)
            if fresh.any():
                table = group.read()
                yield table if fresh.all() else table.filter(fresh)
                written = np.concatenate([written, members[fresh]])

    @property
    def _parts(self) -> Path:
        return self.path.with_suffix(".parts")

    @property
    def _part_files(self) -> list[Path]:
        return sorted(self._parts.glob("*.parquet"))

    @cached_property
    def _groups(self) -> list[tuple[_RowGroup, Ints]]:
        """Row groups of the file and of the parts next to it, and the sample ids of each."""
        groups = []
        for path in [self.path, *self._part_files]:
            if path.exists() and self._is_ours(file := open_table(path)):
                for group in (_RowGroup(path, file, number) for number in range(file.num_row_groups)):
                    groups.append((group, group.read(["sample_id"]).column("sample_id").to_numpy()))
        return groups

    def _forget(self) -> None:
        for name in ("_groups", "sample_id"):
            self.__dict__.pop(name, None)

    def _is_ours(self, file: Any) -> bool:
        metadata = file.schema_arrow.metadata or {}
        return {key: metadata.get(key.encode(), b"").decode() for key in self.belongs_to} == dict(self.belongs_to)

    def _write(self, path: Path, tables: Iterator[pa.Table]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from wellread.files import replacing

        schema = with_digest(pa.schema({"sample_id": pa.int64(), **self.columns()}, metadata=dict(self.belongs_to)))
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file, pq.ParquetWriter(file, schema, **WRITING) as writer:
            for table in tables:
                writer.write_table(table.cast(schema))


@dataclass(frozen=True, eq=False)
class _RowGroup:
    """A row group of an open file."""

    path: Path
    file: Any
    number: int

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Some columns, or all; UserError when a page is damaged."""
        with unreadable_named(self.path):
            return self.file.read_row_group(self.number, columns=columns)


class TokenFile(SampleFile[Tokens]):
    """Token columns of samples under one model."""

    def joined(self, parts: Sequence[Tokens]) -> Tokens:
        """The samples of all parts."""
        return Tokens.joined(parts)

    def columns(self) -> Mapping[str, pa.DataType]:
        """Lists over the target tokens of a sample."""
        import pyarrow as pa

        return {name: pa.list_(pa.from_numpy_dtype(kind)) for name, kind in COLUMNS.items()}

    def to_table(self, part: Tokens) -> pa.Table:
        """One row per sample."""
        import pyarrow as pa

        bounds = pa.array(part.bounds.astype(np.int32))
        lists = {name: pa.ListArray.from_arrays(bounds, getattr(part, name)) for name in COLUMNS}
        return pa.table({"sample_id": part.sample_id, **lists})

    def from_table(self, table: pa.Table) -> Tokens:
        """Token columns from one row per sample."""
        columns = {name: table.column(name).combine_chunks() for name in COLUMNS}
        sizes = columns["logp"].value_lengths().to_numpy()
        return Tokens(
            sample_id=table.column("sample_id").to_numpy(),
            bounds=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            **{name: column.flatten().to_numpy() for name, column in columns.items()},
        )
