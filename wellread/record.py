"""The reading record: what every step really read, in Parquet parts under a hash chain."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wellread import arrow
from wellread.data.corpus import DIGEST_BYTES
from wellread.errors import UserError
from wellread.files import sha256_file, write_atomic, write_json

if TYPE_CHECKING:
    import pyarrow

COLUMNS = ("step", "batch_id", "slot", "sample_id", "epoch", "n_targets", "loss", "digest", "skipped")
ROWS_PER_PART = 1 << 18
"""A part is written when a checkpoint is saved, or when this many rows have gathered."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One batch as it was read, in slot order."""

    batch_id: int
    sample_ids: NDArray[np.int64]
    epochs: NDArray[np.int64]
    n_targets: NDArray[np.int64]
    losses: NDArray[np.float32]
    """Mean over each sample's target tokens, as trained."""
    digests: list[bytes]
    skipped: bool = False
    """It was read, but nothing was learned from it: its update was not taken."""


def genesis(corpus_hash: str, order: dict[str, Any]) -> str:
    """Head of an empty record: hex sha256 that binds the chain to one corpus and one order."""
    return hashlib.sha256(json.dumps([corpus_hash, order], sort_keys=True).encode()).hexdigest()


def link(head: str, batch_id: int, sample_ids: NDArray[np.int64], digests: bytes) -> str:
    """Next head of the chain: sha256(head | batch_id | sample ids | digests), integers as little-endian int64."""
    state = hashlib.sha256(bytes.fromhex(head) + int(batch_id).to_bytes(8, "little"))
    state.update(np.ascontiguousarray(sample_ids, dtype="<i8").data)
    state.update(digests)
    return state.hexdigest()


class RecordWriter:
    """Appends to the record of one run; one process at a time."""

    def __init__(self, directory: Path, *, start: str, step: int = 0, head: str | None = None) -> None:
        """Open the record at `step`; what was recorded beyond it was never part of a checkpoint and is dropped.

        Parameters
        ----------
        start : str
            Genesis head (see `genesis`).
        step : int
            Number of batches that the checkpoint resumed from has read.
        head : str
            Head that this checkpoint names.

        Raises
        ------
        UserError
            When the record has no part that ends at `step`.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._genesis = start
        self.step = step
        self.head = head or start
        self._parts = [part for part in _parts(directory) if part["to"] <= step]
        if (self._parts[-1]["to"] if self._parts else 0) != step:
            raise UserError(f"{directory}: the record has no part that ends at step {step}; its files are incomplete")
        self._rows: list[Reading] = []
        self._write_head()
        kept = {part["name"] for part in self._parts}
        for path in directory.glob("part-*.parquet"):
            if path.name not in kept:
                path.unlink()

    def append(self, reading: Reading) -> None:
        """Add the batch that was just read; call it after its optimizer step succeeded, or was skipped on purpose."""
        if reading.batch_id != self.step:
            raise AssertionError(f"batch {reading.batch_id} recorded at step {self.step}")
        self.head = link(self.head, reading.batch_id, reading.sample_ids, b"".join(reading.digests))
        self.step += 1
        self._rows.append(reading)
        if len(self._rows) * len(reading.sample_ids) >= ROWS_PER_PART:
            self.flush()

    def flush(self) -> None:
        """Write what has gathered as one part, then the head that names it; durable when this returns."""
        if not self._rows:
            return
        start, stop = self._rows[0].batch_id, self._rows[-1].batch_id + 1
        name = f"part-{start:08d}-{stop:08d}.parquet"
        content = _to_parquet(self._rows)
        write_atomic(self._directory / name, content)
        rows = sum(len(reading.sample_ids) for reading in self._rows)
        digest = hashlib.sha256(content).hexdigest()
        self._parts.append({"name": name, "from": start, "to": stop, "rows": rows, "sha256": digest})
        self._rows.clear()
        self._write_head()

    def _write_head(self) -> None:
        head = {"version": 1, "genesis": self._genesis, "step": self.step, "head": self.head, "parts": self._parts}
        write_json(self._directory / "head.json", head)


def _parts(directory: Path) -> list[dict[str, Any]]:
    path = directory / "head.json"
    parts: list[dict[str, Any]] = json.loads(path.read_text())["parts"] if path.exists() else []
    return parts


def _to_parquet(rows: list[Reading]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    batch_ids = np.concatenate([np.full(len(r.sample_ids), r.batch_id) for r in rows])
    table = pyarrow.table(
        {
            "step": arrow.numbers(batch_ids + 1, np.int64),
            "batch_id": arrow.numbers(batch_ids, np.int64),
            "slot": arrow.numbers(np.concatenate([np.arange(len(r.sample_ids)) for r in rows]), np.int32),
            "sample_id": arrow.numbers(np.concatenate([r.sample_ids for r in rows]), np.int64),
            "epoch": arrow.numbers(np.concatenate([r.epochs for r in rows]), np.int32),
            "n_targets": arrow.numbers(np.concatenate([r.n_targets for r in rows]), np.int32),
            "loss": arrow.numbers(np.concatenate([r.losses for r in rows]), np.float32),
            "digest": arrow.digests(b"".join(d for r in rows for d in r.digests), DIGEST_BYTES),
            "skipped": arrow.flags(np.repeat([r.skipped for r in rows], [len(r.sample_ids) for r in rows])),
        }
    )
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd", use_dictionary=["step", "batch_id", "slot", "epoch"])
    return buffer.getvalue()


@dataclass(frozen=True)
class Record:
    """A record as it lies on disk."""

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
            return cls(directory, json.loads((directory / "head.json").read_text()))
        except FileNotFoundError:
            raise UserError(f"{directory}: no record there (head.json is missing); has the run started?") from None
        except json.JSONDecodeError as error:
            raise UserError(f"{directory / 'head.json'}: damaged ({error})") from None

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

    def table(self, columns: list[str] | None = None, batches: tuple[int, int] | None = None) -> pyarrow.Table:
        """Rows of batches ``start … stop-1`` (default: all), in order of reading.

        Raises
        ------
        UserError
            When the range goes beyond what was read.
        """
        import pyarrow
        import pyarrow.parquet

        start, stop = batches or (0, self.batches)
        if not 0 <= start <= stop <= self.batches:
            raise UserError(f"batches {start}:{stop}: out of range, the record holds batches 0:{self.batches}")
        tables = []
        for part in self.parts:
            low, high = max(start, part["from"]), min(stop, part["to"])
            if low < high:
                table = _read_part(self.directory / part["name"], columns)
                size = part["rows"] // (part["to"] - part["from"])
                tables.append(table.slice((low - part["from"]) * size, (high - low) * size))
        if not tables:
            return _empty_table(columns)
        return pyarrow.concat_tables(tables)

    def sample_ids(self, batches: tuple[int, int] | None = None) -> NDArray[np.int64]:
        """Sample ids in order of reading, (batches * batch size,)."""
        ids: NDArray[np.int64] = self.table(["sample_id"], batches)["sample_id"].to_numpy()
        return ids

    def skipped(self, batches: tuple[int, int] | None = None) -> NDArray[np.int64]:
        """Ids of batches that were read and not learned from, ascending."""
        table = self.table(["batch_id", "skipped"], batches)
        return np.unique(table["batch_id"].to_numpy()[table["skipped"].to_numpy()])

    def damaged_parts(self) -> list[str]:
        """One line for each part that is missing, altered or leaves a gap."""
        problems, expected = [], 0
        for part in self.parts:
            path = self.directory / part["name"]
            if part["from"] != expected:
                problems.append(f"{path}: starts at batch {part['from']}, expected {expected}")
            expected = part["to"]
            if not path.is_file():
                problems.append(f"{path}: missing")
            elif sha256_file(path) != part["sha256"]:
                problems.append(f"{path}: altered (its sha256 is not the one in head.json)")
        if expected != self.batches:
            problems.append(f"{self.directory}: parts end at batch {expected}, head.json says {self.batches}")
        return problems


def _read_part(path: Path, columns: list[str] | None) -> pyarrow.Table:
    """Columns of one part; in a part older than the column `skipped`, no batch was."""
    import pyarrow
    import pyarrow.parquet

    names = list(columns or COLUMNS)
    with pyarrow.parquet.ParquetFile(path) as file:
        there = file.schema_arrow.names
        table = file.read([name for name in names if name in there] or ["batch_id"])
    if "skipped" in names and "skipped" not in there:
        table = table.append_column("skipped", pyarrow.array(np.zeros(len(table), dtype=np.bool_)))
    return table.select(names)


def _empty_table(columns: list[str] | None) -> pyarrow.Table:
    rows = Reading(
        batch_id=0,
        sample_ids=np.empty(0, np.int64),
        epochs=np.empty(0, np.int64),
        n_targets=np.empty(0, np.int64),
        losses=np.empty(0, np.float32),
        digests=[],
    )
    import pyarrow.parquet

    return pyarrow.parquet.read_table(io.BytesIO(_to_parquet([rows])), columns=columns)
