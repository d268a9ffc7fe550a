"""Writing the record: batches as they were read, in Parquet parts with a hash chain."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus import arrow
from wellread.corpus.digest import DIGEST_BYTES
from wellread.errors import UserError
from wellread.files import read_json, with_checksum, write_atomic, write_json
from wellread.record import sealed
from wellread.record.chain import link
from wellread.record.sealed import SealedLosses

COLUMNS = ("step", "batch_id", "slot", "sample_id", "epoch", "n_targets", "loss", "digest", "skipped")


ROWS_PER_PART = 1 << 18
"""A part is written when a checkpoint is saved, or when this many rows are buffered."""


@dataclass(frozen=True, kw_only=True)
class RecordedBatch:
    """One batch as it was read, in slot order."""

    batch_id: int
    sample_ids: NDArray[np.int64]
    epochs: NDArray[np.int64]
    n_targets: NDArray[np.int64]
    losses: NDArray[np.float32]
    """Mean over each sample's target tokens, as trained."""
    digests: list[bytes]
    skipped: bool = False
    """Whether it was read, but not learned from: the optimizer did not apply its update."""


class RecordWriter:
    """Appends to the record of one run. Only one process may write at a time."""

    def __init__(self, directory: Path, *, start: str, step: int = 0, head: str | None = None) -> None:
        """Open the record at `step`, and delete later batches and measurements, which belong to no checkpoint.

        Parameters
        ----------
        start : str
            Head of the empty record (see `wellread.record.chain.genesis`).
        step : int
            Number of batches that the checkpoint has read from which the run resumes.
        head : str
            Head of the record in this checkpoint; None when there is no checkpoint, not even of step 0.

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
        parts, measured = _listed(directory)
        self._parts = [part for part in parts if part["to"] <= step]
        self._sealed = [file for file in measured if head and file["to"] <= step]
        if (self._parts[-1]["to"] if self._parts else 0) != step:
            raise UserError(f"{directory}: the record has no part that ends at step {step}; its files are incomplete")
        self._rows: list[RecordedBatch] = []
        self._measured: list[SealedLosses] = []
        self._write_head()
        names = {file["name"] for file in (*self._parts, *self._sealed)}
        for pattern in ("part-*.parquet", "sealed-*.parquet"):
            for path in directory.glob(pattern):
                if path.name not in names:
                    path.unlink()

    @property
    def sealed_values(self) -> int:
        """Number of losses of sealed samples in the record."""
        return sum(int(file["rows"]) for file in self._sealed) + self._measured_rows

    def append(self, batch: RecordedBatch) -> None:
        """Add the batch that was just read; call it after its optimizer step succeeded or was deliberately skipped."""
        if batch.batch_id != self.step:
            raise AssertionError(f"batch {batch.batch_id} recorded at step {self.step}")
        self.head = link(self.head, batch.batch_id, batch.sample_ids, b"".join(batch.digests))
        self.step += 1
        self._rows.append(batch)
        if len(self._rows) * len(batch.sample_ids) >= ROWS_PER_PART:
            self.flush()

    def measured(self, losses: SealedLosses) -> None:
        """Add losses of sealed samples under the weights of this step. They do not enter the chain."""
        last = self._measured[-1].step if self._measured else self._sealed[-1]["to"] if self._sealed else -1
        if not last < losses.step == self.step:
            raise AssertionError(f"step {losses.step} measured at step {self.step}, after step {last}")
        self._measured.append(losses)
        if self._measured_rows >= ROWS_PER_PART:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered as files, then the head that names them; all are durable when this returns."""
        if not self._rows and not self._measured:
            return
        if self._rows:
            self._write_part()
        if self._measured:
            self._write_sealed()
        self._write_head()

    def _write_part(self) -> None:
        start, stop = self._rows[0].batch_id, self._rows[-1].batch_id + 1
        rows = sum(len(reading.sample_ids) for reading in self._rows)
        self._write(self._parts, f"part-{start:08d}-{stop:08d}.parquet", to_parquet(self._rows), start, stop, rows)
        self._rows.clear()

    def _write_sealed(self) -> None:
        first, last = self._measured[0].step, self._measured[-1].step
        name, content = sealed.file_name(first, last), sealed.to_parquet(self._measured)
        self._write(self._sealed, name, content, first, last, self._measured_rows)
        self._measured.clear()

    def _write(self, files: list[dict[str, Any]], name: str, content: bytes, first: int, last: int, rows: int) -> None:
        """Write a file, and add its entry in head.json to `files`."""
        write_atomic(self._directory / name, content)
        digest = hashlib.sha256(content).hexdigest()
        files.append({"name": name, "from": first, "to": last, "rows": rows, "sha256": digest})

    @property
    def _measured_rows(self) -> int:
        """Number of losses of sealed samples that are not written yet."""
        return sum(len(each.sample_ids) for each in self._measured)

    def _write_head(self) -> None:
        head = {"version": 1, "genesis": self._genesis, "step": self.step, "head": self.head, "parts": self._parts}
        if self._sealed:  # older versions write none, and their records stay as they are
            head["sealed"] = self._sealed
        write_json(self._directory / "head.json", with_checksum(head))


def _listed(directory: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The parts and the files of sealed losses that head.json names; older versions name none of the latter."""
    path = directory / "head.json"
    if not path.exists():
        return [], []
    head = read_json(path)
    return head["parts"], head.get("sealed", [])


def to_parquet(rows: list[RecordedBatch]) -> bytes:
    """Serialize batches to the content of a Parquet part."""
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
