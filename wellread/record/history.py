"""What was read and what will be read: samples, their order, and the record if there is a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wellread.checkpoint import Checkpoint, missing_checkpoint
from wellread.corpus.decoder import Decoder
from wellread.corpus.read import COMPILE_AGAIN, METRICS, Corpus, SampleReader
from wellread.corpus.segments import FILE as SEGMENTS
from wellread.corpus.segments import Segments
from wellread.errors import UserError
from wellread.files import damage_named
from wellread.order.permutation import Order
from wellread.record.reader import Record
from wellread.record.samples import SamplesTable

if TYPE_CHECKING:
    import pyarrow

COLUMNS = ["sample_id", "n_targets", "loss", "skipped"]
"""Columns of the record that queries on batches and samples need."""
LAST = "last"
"""The newest checkpoint, by name."""


@dataclass(frozen=True, kw_only=True)
class BatchRead:
    """One batch, as it was read or will be read; all lists are in slot order. The argument of a ``--call`` function."""

    batch_id: int
    read: bool
    """Whether a recorded step has read it."""
    sample_ids: list[int]
    epochs: list[int]
    losses: list[float] | None
    """Mean over the target tokens of each sample, as trained; None when the batch is not read yet."""
    tokens: list[NDArray[Any]]
    n_targets: list[int]
    texts: list[str] | None
    """None without a tokenizer."""
    samples: list[dict[str, Any]] = field(repr=False)
    """For each sample its row of the samples table, e.g. source, rows, category; empty without such a table.

    The row of a packed sample has `segments`: rows of the segments table, each with its text or tokens."""
    skipped: bool = False
    """Whether it was read, but not learned from."""

    @property
    def step(self) -> int:
        """The step that reads it: batch_id + 1."""
        return self.batch_id + 1

    @property
    def loss(self) -> float | None:
        """Mean loss over all target tokens of the batch; None when it is not read yet."""
        return None if self.losses is None else float(np.average(self.losses, weights=self.n_targets))


@dataclass(frozen=True)
class Reading:
    """One place, batch and slot, where a sample is read."""

    batch_id: int
    slot: int
    epoch: int
    loss: float | None
    """As trained; None when no recorded step has read it yet."""


@dataclass(frozen=True, kw_only=True)
class History:
    """Samples, the order in which they are read, and the record of what was read so far."""

    name: str
    reader: SampleReader
    order: Order
    steps: int
    """Number of planned batches."""
    tokenizer_directory: Path | None
    record: Record | None = None
    checkpoints: Sequence[Checkpoint] = ()

    @property
    def batches_read(self) -> int:
        """Number of batches in the record."""
        return self.record.batches if self.record else 0

    @cached_property
    def tokenizer(self) -> Decoder | None:
        """The tokenizer of the corpus; None when there is none."""
        return Decoder.load(self.tokenizer_directory) if self.tokenizer_directory else None

    @cached_property
    def samples(self) -> SamplesTable:
        """The samples table: source, rows, category and metrics of each sample."""
        path = self.reader.path / "samples.parquet"
        segments = path.with_name(SEGMENTS) if isinstance(self.units, Segments) else None
        metrics = path.with_name(METRICS)
        if not path.is_file():
            return SamplesTable(None, segments)
        return SamplesTable(path, segments, self._complete(metrics) if metrics.is_file() else None)

    def _complete(self, metrics: Path) -> Path:
        """Path of the text metrics after checking that they have one row per sample."""
        import pyarrow.parquet

        with damage_named(metrics, COMPILE_AGAIN):
            rows = pyarrow.parquet.read_metadata(metrics).num_rows
        if rows != self.reader.n:
            raise UserError(f"{metrics}: {rows:,} rows for {self.reader.n:,} samples; {COMPILE_AGAIN}")
        return metrics

    @cached_property
    def units(self) -> SampleReader:
        """Sequences that the model reads in isolation: samples; of a packed corpus, its segments."""
        return Segments(self.reader) if isinstance(self.reader, Corpus) and self.reader.packed else self.reader

    # --- queries ---

    def checkpoint(self, name: str) -> Checkpoint:
        """Find a checkpoint by ``400``, ``step-400``, the name of its directory, or ``last``.

        Raises
        ------
        UserError
            When there is none; the message lists the existing ones.
        """
        digits = Path(name).name.removeprefix("step-")
        if name == LAST and self.checkpoints:
            digits = str(self.checkpoints[-1].step)
        if not digits.isdecimal():
            raise UserError(f"checkpoint {name}: expected a step, e.g. step-400 or 400, or last")
        by_step = {checkpoint.step: checkpoint for checkpoint in self.checkpoints}
        if int(digits) not in by_step:
            raise missing_checkpoint(self.name, int(digits), list(by_step))
        if int(digits) > self.batches_read:
            raise UserError(
                f"{self.name}: the record ends at step {self.batches_read}, before step-{int(digits)}; "
                "run wellread verify"
            )
        return by_step[int(digits)]

    def batch_range(self, text: str) -> tuple[int, int]:
        """Parse ``137`` or ``100:200`` into start and stop.

        Raises
        ------
        UserError
            When it has another form, or goes beyond the planned batches; the message gives the range.
        """
        start, colon, stop = text.partition(":")
        if not start.isdecimal() or (colon and not stop.isdecimal()):
            raise UserError(f"--batch {text}: expected a batch or a range, e.g. 137 or 100:200")
        low, high = int(start), int(stop) if colon else int(start) + 1
        if low >= high:
            raise UserError(
                f"--batch {text}: is {'reversed' if low > high else 'empty'}, the end is not included; "
                f"write {f'{high}:{low}' if low > high else low}"
            )
        if high > self.steps:
            raise UserError(
                f"--batch {text}: out of range, {self.name} has batches 0 … {self.steps - 1}"
                + (f" (as a range 0:{self.steps}, the end not included)" if colon else "")
            )
        return low, high

    def batch(self, batch_id: int) -> BatchRead:
        """One batch: from the record if it has been read, otherwise from the order.

        Raises
        ------
        UserError
            When no such batch is planned; the message gives the range.
        """
        (batch,) = self.batches(batch_id, batch_id + 1)
        return batch

    def batches(self, start: int, stop: int) -> Iterator[BatchRead]:
        """Yield batches start … stop-1 one by one: from the record if they have been read, otherwise from the order.

        Raises
        ------
        UserError
            When not all of them are planned; the message gives the range.
        """
        if not 0 <= start <= stop <= self.steps:
            name = f"batch {start}" if stop == start + 1 else f"batches {start}:{stop}"
            raise UserError(f"{name}: out of range, {self.name} has batches 0 … {self.steps - 1}")
        return map(self._batch, range(start, stop))

    def numbers(self, batch_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32] | None]:
        """Sample ids, numbers of targets and losses (None: not read yet) of one batch in slot order, without texts."""
        if batch_id >= self.batches_read:
            ids = self.order.batch(batch_id)
            return ids, self.reader.n_targets(ids), None
        rows = self._recorded(batch_id)
        return rows["sample_id"].to_numpy(), rows["n_targets"].to_numpy(), rows["loss"].to_numpy()

    def _recorded(self, batch_id: int) -> pyarrow.Table:
        """Rows of the record for one batch that has been read, in slot order."""
        assert self.record is not None
        (part,) = self.record.parts_of(batch_id, batch_id + 1)
        start, stop = part["from"], part["to"]
        size = self.order.batch_size
        return self._part(start, stop).slice((batch_id - start) * size, size)

    @cached_property
    def _part(self) -> Callable[[int, int], pyarrow.Table]:
        """A function that reads the record of batches start … stop-1 and caches the last result."""
        record = self.record
        assert record is not None
        return lru_cache(maxsize=1)(lambda start, stop: record.table(COLUMNS, (start, stop)))

    def _batch(self, batch_id: int) -> BatchRead:
        ids, n_targets, losses = self.numbers(batch_id)
        places = np.arange(batch_id * len(ids), (batch_id + 1) * len(ids))
        tokens = [self.reader.tokens(i) for i in ids.tolist()]
        rows = self.samples.rows(ids)
        for row, sample_tokens in zip(rows, tokens, strict=False):
            self._add_content(row.get("segments", []), sample_tokens)
        return BatchRead(
            batch_id=batch_id,
            read=losses is not None,
            sample_ids=ids.tolist(),
            epochs=self.order.epochs(places).tolist(),
            losses=None if losses is None else losses.tolist(),
            tokens=tokens,
            n_targets=n_targets.tolist(),
            texts=[self.tokenizer.decode(t.tolist()) for t in tokens] if self.tokenizer else None,
            samples=rows,
            skipped=losses is not None and self._recorded(batch_id)["skipped"][0].as_py(),
        )

    def _add_content(self, segments: list[dict[str, Any]], tokens: NDArray[Any]) -> None:
        """Add the text of each segment of a packed sample; its tokens when there is no tokenizer."""
        start = 0
        for segment in segments:
            ids = tokens[start : start + segment["n_tokens"]].tolist()
            segment.update({"text": self.tokenizer.decode(ids)} if self.tokenizer else {"tokens": ids})
            start += segment["n_tokens"]

    def sample(self, sample_id: int) -> list[Reading]:
        """All readings of a sample until the planned end, from the inverse of the order, without scanning the record.

        Raises
        ------
        UserError
            When there is no such sample; the message gives the range.
        """
        (readings,) = self.readings([sample_id])
        return readings

    def readings(self, sample_ids: Sequence[int]) -> list[list[Reading]]:
        """The same for several samples at once; each part of the record is read once.

        Raises
        ------
        UserError
            When there is no such sample; the message gives the range.
        """
        places = [self._places(sample_id) for sample_id in sample_ids]
        read = sorted((*place, sample_id) for sample_id, of in zip(sample_ids, places, strict=True) for place in of)
        losses = {each: self._loss(*each) for each in read}
        return [
            [
                Reading(batch_id, slot, epoch, losses[batch_id, slot, sample_id])
                for (batch_id, slot), epoch in zip(of, self._epochs(of), strict=True)
            ]
            for sample_id, of in zip(sample_ids, places, strict=True)
        ]

    def _places(self, sample_id: int) -> list[tuple[int, int]]:
        """Batch and slot of each reading of a sample; sealed samples are in no order."""
        if not 0 <= sample_id < self.reader.n:
            raise UserError(f"sample {sample_id}: out of range, {self.name} has samples 0 … {self.reader.n - 1}")
        return [] if sample_id >= self.reader.n_trainable else self.order.locate(sample_id, batches=self.steps)

    def _epochs(self, places: list[tuple[int, int]]) -> list[int]:
        positions = np.array([b * self.order.batch_size + s for b, s in places], dtype=np.int64)
        return list(self.order.epochs(positions).tolist())

    def _loss(self, batch_id: int, slot: int, sample_id: int) -> float | None:
        if batch_id >= self.batches_read:
            return None
        rows = self._recorded(batch_id)
        if (read := rows["sample_id"][slot].as_py()) != sample_id:
            raise UserError(
                f"{self.name}: batch {batch_id} slot {slot} read sample {read}, its order says {sample_id}; "
                "run wellread verify"
            )
        loss: float = rows["loss"][slot].as_py()
        return loss
