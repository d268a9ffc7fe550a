"""Files of token columns, `eval/tokens/*.parquet`: written in parts, so that an interrupted process loses little."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.separation import Ints
from wellread.errors import UserError
from wellread.tokens import COLUMNS, Tokens

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class TokenFile:
    """Token columns of samples under one model, kept in one file."""

    path: Path
    belongs_to: Mapping[str, str]
    """Metadata that binds the file to the model and to how it was run; a file with other metadata is replaced."""

    @cached_property
    def sample_id(self) -> Ints:
        """Samples that the file has, ascending; empty when it is missing or belongs to something else."""
        return np.unique(np.concatenate([np.zeros(0, np.int64), *(ids for _, _, ids in self._groups)]))

    def read(self, ids: Ints) -> Tokens:
        """Token columns of these samples, in the given order; all of them must be in the file."""
        if not ids.size:
            return Tokens.joined([])
        parts, low, high = [], ids.min(), ids.max()
        for file, group, members in self._groups:
            if members.size and members.min() <= high and members.max() >= low and np.isin(members, ids).any():
                tokens = _tokens(file.read_row_group(group))
                parts.append(tokens.at(members[np.isin(members, ids)]))
        return Tokens.joined(parts).at(ids)

    def write(self, parts: Iterator[Tokens]) -> None:
        """Add samples: each part is written at once, and all are joined with the file at the end."""
        for number, tokens in enumerate(parts, len(self._part_files)):
            self._write(self._parts / f"{number:06}.parquet", iter([self._table(tokens)]))
        self._forget()
        if self._part_files:
            self._join()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of this file, for which other processes wait, and forget what the file had before."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_suffix(".lock"), "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._forget()
            yield

    def recover(self) -> None:
        """Join the parts that an interrupted process has left with the file; remove those of another model."""
        if not self._part_files:
            return
        for path in self._part_files:
            if not self._is_ours(_open(path)):
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
        for file, group, members in self._groups:
            fresh = ~np.isin(members, written)
            if fresh.any():
                table = file.read_row_group(group)
                yield table if fresh.all() else table.filter(fresh)
                written = np.concatenate([written, members[fresh]])

    @property
    def _parts(self) -> Path:
        return self.path.with_suffix(".parts")

    @property
    def _part_files(self) -> list[Path]:
        return sorted(self._parts.glob("*.parquet"))

    @cached_property
    def _groups(self) -> list[tuple[Any, int, Ints]]:
        """Open file, number and sample ids of each row group, of the file and of the parts next to it."""
        groups = []
        for path in [self.path, *self._part_files]:
            if path.exists() and self._is_ours(file := _open(path)):
                for group in range(file.num_row_groups):
                    column = file.read_row_group(group, columns=["sample_id"]).column("sample_id")
                    groups.append((file, group, column.to_numpy()))
        return groups

    def _forget(self) -> None:
        for name in ("_groups", "sample_id"):
            self.__dict__.pop(name, None)

    def _is_ours(self, file: Any) -> bool:
        metadata = file.schema_arrow.metadata or {}
        return {key: metadata.get(key.encode(), b"").decode() for key in self.belongs_to} == dict(self.belongs_to)

    def _table(self, tokens: Tokens) -> pa.Table:
        import pyarrow as pa

        bounds = pa.array(tokens.bounds.astype(np.int32))
        lists = {name: pa.ListArray.from_arrays(bounds, getattr(tokens, name)) for name in COLUMNS}
        return pa.table({"sample_id": tokens.sample_id, **lists})

    def _write(self, path: Path, tables: Iterator[pa.Table]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from wellread.files import replacing

        types = {name: pa.list_(pa.from_numpy_dtype(kind)) for name, kind in COLUMNS.items()}
        schema = pa.schema({"sample_id": pa.int64(), **types}, metadata=dict(self.belongs_to))
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table.cast(schema))


def _open(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file; delete it and run the evaluation again") from error


def _tokens(table: pa.Table) -> Tokens:
    columns = {name: table.column(name).combine_chunks() for name in COLUMNS}
    sizes = columns["logp"].value_lengths().to_numpy()
    return Tokens(
        sample_id=table.column("sample_id").to_numpy(),
        bounds=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        **{name: column.flatten().to_numpy() for name, column in columns.items()},
    )
