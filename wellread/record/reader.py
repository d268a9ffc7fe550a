"""Reading the record: what every step has read, in Parquet parts with a hash chain."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wellread.errors import UserError
from wellread.files import damage_named, read_json, sha256_file
from wellread.record import sealed
from wellread.record.writer import COLUMNS, RecordedBatch, to_parquet

if TYPE_CHECKING:
    import pyarrow

PART = {"name": str, "from": int, "to": int, "rows": int, "sha256": str}
HEAD = {"version": int, "genesis": str, "step": int, "head": str, "parts": [PART], "sealed": [PART], "checksum": str}
"""Shape of head.json."""


@dataclass(frozen=True)
class Record:
    """A record on disk."""

    directory: Path
    info: dict[str, Any]

    @classmethod
    def open(cls, directory: Path) -> Record:
        """Open a record.

        Raises
        ------
        UserError
            When there is none, or its head.json cannot be read.
        """
        try:
            info = read_json(directory / "head.json", HEAD)
        except FileNotFoundError:
            raise UserError(f"{directory}: no record (head.json is missing); has the run started?") from None
        if missing := {"step", "head", "parts"} - info.keys():
            raise UserError(f"{directory / 'head.json'}: damaged ({min(missing)!r} is missing); restore it from a copy")
        return cls(directory, info)

    @property
    def batches(self) -> int:
        """Number of batches read."""
        return int(self.info["step"])

    @property
    def head(self) -> str:
        """Head of the hash chain."""
        return str(self.info["head"])

    @property
    def parts(self) -> list[dict[str, Any]]:
        """Name, range of batch ids, rows and sha256 of each part."""
        return list(self.info["parts"])

    @property
    def sealed_files(self) -> list[dict[str, Any]]:
        """Name, first and last step, rows and sha256 of each file with losses of sealed samples; older runs have none.

        The chain does not cover them.
        """
        return list(self.info.get("sealed", []))

    def sealed(self) -> pyarrow.Table:
        """Losses of sealed samples that the run measured: step, sample_id, n_targets, loss; ascending by step.

        Raises
        ------
        UserError
            When a file is missing or damaged.
        """
        import pyarrow
        import pyarrow.parquet

        tables = [pyarrow.parquet.read_table(io.BytesIO(sealed.to_parquet([sealed.NONE])))]
        for file in self.sealed_files:
            path = self.directory / file["name"]
            with damage_named(path, f"run wellread verify {path.parent.parent}"):
                tables.append(pyarrow.parquet.read_table(path).select(list(sealed.COLUMNS)))
        return pyarrow.concat_tables(tables)

    def table(self, columns: list[str] | None = None, batches: tuple[int, int] | None = None) -> pyarrow.Table:
        """Rows of batches ``start … stop-1`` (default: all), in order of reading.

        Raises
        ------
        UserError
            When the range goes beyond what was read, or a part is damaged.
        """
        import pyarrow
        import pyarrow.parquet

        start, stop = batches or (0, self.batches)
        tables = []
        for part in self.parts_of(start, stop):
            low, high = max(start, part["from"]), min(stop, part["to"])
            table = _read_part(self.directory, part, columns)
            size = part["rows"] // (part["to"] - part["from"])
            tables.append(table.slice((low - part["from"]) * size, (high - low) * size))
        if not tables:
            return _empty_table(columns)
        return pyarrow.concat_tables(tables)

    def pieces(self, columns: list[str], most: int, end: int | None = None) -> Iterator[tuple[int, int, pyarrow.Table]]:
        """All rows, in order of reading: batches ``start … stop-1`` and their rows, at most about `most` at once.

        Parameters
        ----------
        end : int, optional
            Only batches before this one.

        Raises
        ------
        UserError
            When the record ends before that batch, or a part is damaged.
        """
        end = self.batches if end is None else end
        for part in self.parts_of(0, end):
            table = _read_part(self.directory, part, columns)
            size = max(1, part["rows"] // max(1, part["to"] - part["from"]))
            for start in range(part["from"], min(end, part["to"]), max(1, most // size)):
                stop = min(end, part["to"], start + max(1, most // size))
                yield start, stop, table.slice((start - part["from"]) * size, (stop - start) * size)

    def parts_of(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Parts that have one of the batches ``start … stop-1``, in order.

        Raises
        ------
        UserError
            When the range goes beyond what was read, or no part has a batch of it.
        """
        if not 0 <= start <= stop <= self.batches:
            raise UserError(f"batches {start}:{stop}: out of range, the record has batches 0:{self.batches}")
        parts, reached = [part for part in self.parts if max(start, part["from"]) < min(stop, part["to"])], start
        for part in parts:
            if not part["from"] <= reached < part["to"]:
                break
            reached = part["to"]
        if reached < stop:
            raise UserError(
                f"{self.directory}: no part has batch {reached}; run wellread verify {self.directory.parent}"
            )
        return parts

    def sample_ids(self, batches: tuple[int, int] | None = None) -> NDArray[np.int64]:
        """Sample ids in order of reading, (batches * batch size,)."""
        ids: NDArray[np.int64] = self.table(["sample_id"], batches)["sample_id"].to_numpy()
        return ids

    def skipped(self, batches: tuple[int, int] | None = None) -> NDArray[np.int64]:
        """Ids of batches that were read, but not learned from, ascending."""
        start, stop = batches or (0, self.batches)
        ids = [np.empty(0, np.int64)]
        for part in self.parts_of(start, stop):  # one after the other: a record may be larger than the memory
            table = _read_part(self.directory, part, ["batch_id", "skipped"])
            ids.append(np.unique(table["batch_id"].to_numpy()[table["skipped"].to_numpy()]))
        skipped = np.concatenate(ids)
        return np.asarray(skipped[(skipped >= start) & (skipped < stop)])

    def damage(self, file: dict[str, Any]) -> str:
        """Why a file that head.json names cannot be used, in one line; empty if it is complete and unaltered."""
        path = self.directory / file["name"]
        if not path.is_file():
            return f"{path}: missing"
        if sha256_file(path) != file["sha256"]:
            return f"{path}: altered (its sha256 is not the one in head.json)"
        return ""

    def damaged_parts(self) -> list[str]:
        """One line for each part that is missing, altered, or not preceded by the previous batch."""
        problems, expected = [], 0
        for part in self.parts:
            if part["from"] != expected:
                path = self.directory / part["name"]
                problems.append(f"{path}: starts at batch {part['from']}, expected {expected}")
            expected = part["to"]
            if problem := self.damage(part):
                problems.append(problem)
        if expected != self.batches:
            problems.append(f"{self.directory}: parts end at batch {expected}, head.json says {self.batches}")
        return problems


def _read_part(directory: Path, part: dict[str, Any], columns: list[str] | None) -> pyarrow.Table:
    """Read columns of one part; parts that are older than the column `skipped` have no skipped batches."""
    import pyarrow
    import pyarrow.parquet

    names, path, remedy = list(columns or COLUMNS), directory / part["name"], f"run wellread verify {directory.parent}"
    with damage_named(path, remedy):
        with pyarrow.parquet.ParquetFile(path) as file:
            stored = file.schema_arrow.names
            table = file.read([name for name in names if name in stored] or ["batch_id"])
        if len(table) != part["rows"]:
            raise UserError(f"{path}: damaged ({len(table)} rows, head.json says {part['rows']}); {remedy}")
        if "skipped" in names and "skipped" not in stored:
            table = table.append_column("skipped", pyarrow.array(np.zeros(len(table), dtype=np.bool_)))
        return table.select(names)


def _empty_table(columns: list[str] | None) -> pyarrow.Table:
    rows = RecordedBatch(
        batch_id=0,
        sample_ids=np.empty(0, np.int64),
        epochs=np.empty(0, np.int64),
        n_targets=np.empty(0, np.int64),
        losses=np.empty(0, np.float32),
        digests=[],
    )
    import pyarrow.parquet

    return pyarrow.parquet.read_table(io.BytesIO(to_parquet([rows])), columns=columns)
