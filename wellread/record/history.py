"""What was read and what will be: samples under an order, with the record of a run where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wellread.checkpoint import Checkpoint
from wellread.corpus.decoder import Decoder
from wellread.corpus.read import Corpus, SampleReader
from wellread.corpus.segments import FILE as SEGMENTS
from wellread.corpus.segments import Segments
from wellread.errors import UserError
from wellread.order.permutation import Order
from wellread.record.reader import Record
from wellread.record.samples import SamplesTable

if TYPE_CHECKING:
    import pyarrow

SHOWN = 12
"""Names listed in an error before the list is cut."""
COLUMNS = ["sample_id", "n_targets", "loss", "skipped"]
"""Of the record: what a question about a batch or a sample needs."""


@dataclass(frozen=True, kw_only=True)
class BatchRead:
    """One batch, as it was read or as it will be; all lists are in slot order. What ``--call`` is called with."""

    batch_id: int
    read: bool
    """False for a batch that no recorded step has read yet."""
    sample_ids: list[int]
    epochs: list[int]
    losses: list[float] | None
    """Mean over each sample's target tokens, as trained; None where not recorded."""
    tokens: list[NDArray[Any]]
    n_targets: list[int]
    texts: list[str] | None
    """None without a tokenizer."""
    samples: list[dict[str, Any]] = field(repr=False)
    """Row of the samples table of each sample, e.g. source, rows, category; empty without such a table.

    That of a packed sample has `segments`: for each, its row of the segments table, and its text or tokens."""
    skipped: bool = False
    """It was read, and not learned from."""

    @property
    def step(self) -> int:
        """The step that reads it: batch_id + 1."""
        return self.batch_id + 1

    @property
    def loss(self) -> float | None:
        """Mean loss over all target tokens of the batch; None where not recorded."""
        return None if self.losses is None else float(np.average(self.losses, weights=self.n_targets))


@dataclass(frozen=True)
class Reading:
    """One place at which a sample is read."""

    batch_id: int
    slot: int
    epoch: int
    loss: float | None
    """As trained; None where no recorded step has read it yet."""


@dataclass(frozen=True, kw_only=True)
class History:
    """Samples, the order in which they are read, and what of it has happened."""

    name: str
    reader: SampleReader
    order: Order
    steps: int
    """Batches that are planned."""
    tokenizer_directory: Path | None
    record: Record | None = None
    checkpoints: Sequence[Checkpoint] = ()

    @property
    def batches_read(self) -> int:
        """Batches that the record holds."""
        return self.record.batches if self.record else 0

    @cached_property
    def tokenizer(self) -> Decoder | None:
        """The corpus's tokenizer; None when none was given."""
        return Decoder.load(self.tokenizer_directory) if self.tokenizer_directory else None

    @cached_property
    def samples(self) -> SamplesTable:
        """What is known of the samples beside their tokens."""
        path = self.reader.path / "samples.parquet"
        segments = path.with_name(SEGMENTS) if isinstance(self.units, Segments) else None
        return SamplesTable(path if path.is_file() else None, segments)

    @cached_property
    def units(self) -> SampleReader:
        """What is read as if it stood alone: samples, of a packed corpus its segments."""
        return Segments(self.reader) if isinstance(self.reader, Corpus) and self.reader.packed else self.reader

    # --- what is asked for ---

    def checkpoint(self, name: str) -> Checkpoint:
        """Look a checkpoint up by ``400``, ``step-400`` or its directory's name.

        Raises
        ------
        UserError
            When there is none; names those that there are.
        """
        digits = Path(name).name.removeprefix("step-")
        if not digits.isdecimal():
            raise UserError(f"checkpoint {name}: expected a step, e.g. step-400 or 400")
        by_step = {checkpoint.step: checkpoint for checkpoint in self.checkpoints}
        if int(digits) not in by_step:
            raise UserError(f"{self.name}: no checkpoint step-{int(digits)}; it has {_listed(list(by_step))}")
        if int(digits) > self.batches_read:
            raise UserError(
                f"{self.name}: the record ends at step {self.batches_read}, before step-{int(digits)}; run eval verify"
            )
        return by_step[int(digits)]

    def batch_range(self, text: str) -> tuple[int, int]:
        """Turn ``137`` or ``100:200`` into start and stop.

        Raises
        ------
        UserError
            When it is neither, or beyond the batches that are planned; says the range.
        """
        start, colon, stop = text.partition(":")
        if not start.isdecimal() or (colon and not stop.isdecimal()):
            raise UserError(f"--batch {text}: expected a batch or a range, e.g. 137 or 100:200")
        low, high = int(start), int(stop) if colon else int(start) + 1
        if not low < high <= self.steps:
            raise UserError(
                f"--batch {text}: out of range, {self.name} has batches 0 … {self.steps - 1}"
                + (f" (as a range 0:{self.steps}, the end not included)" if colon else "")
            )
        return low, high

    def batch(self, batch_id: int) -> BatchRead:
        """One batch: from the record when it has been read, else from the order.

        Raises
        ------
        UserError
            When no such batch is planned; says the range.
        """
        (batch,) = self.batches(batch_id, batch_id + 1)
        return batch

    def batches(self, start: int, stop: int) -> Iterator[BatchRead]:
        """Yield batches start … stop-1 one by one: those read from the record, those to come from the order.

        Raises
        ------
        UserError
            When they are not all planned; says the range.
        """
        if not 0 <= start <= stop <= self.steps:
            asked = f"batch {start}" if stop == start + 1 else f"batches {start}:{stop}"
            raise UserError(f"{asked}: out of range, {self.name} has batches 0 … {self.steps - 1}")
        return map(self._batch, range(start, stop))

    def numbers(self, batch_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32] | None]:
        """Sample ids, targets and losses (None: not read yet) of one batch in slot order; no text is touched."""
        if batch_id >= self.batches_read:
            ids = self.order.batch(batch_id)
            return ids, self.reader.n_targets(ids), None
        rows = self._recorded(batch_id)
        return rows["sample_id"].to_numpy(), rows["n_targets"].to_numpy(), rows["loss"].to_numpy()

    def _recorded(self, batch_id: int) -> pyarrow.Table:
        """Rows of the record of one batch that has been read, in slot order."""
        assert self.record is not None
        start, stop = next((p["from"], p["to"]) for p in self.record.parts if p["from"] <= batch_id < p["to"])
        size = self.order.batch_size
        return self._part(start, stop).slice((batch_id - start) * size, size)

    @cached_property
    def _part(self) -> Callable[[int, int], pyarrow.Table]:
        """Reads the part of the record that holds batches start … stop-1; the last one asked for is kept."""
        record = self.record
        assert record is not None
        return lru_cache(maxsize=1)(lambda start, stop: record.table(COLUMNS, (start, stop)))

    def _batch(self, batch_id: int) -> BatchRead:
        ids, n_targets, losses = self.numbers(batch_id)
        places = np.arange(batch_id * len(ids), (batch_id + 1) * len(ids))
        tokens = [self.reader.tokens(i) for i in ids.tolist()]
        rows = self.samples.rows(ids)
        for row, own in zip(rows, tokens, strict=False):
            self._add_content(row.get("segments", []), own)
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
        """Give each segment of a packed sample its text; its tokens where there is no tokenizer."""
        start = 0
        for segment in segments:
            own = tokens[start : start + segment["n_tokens"]].tolist()
            segment.update({"text": self.tokenizer.decode(own)} if self.tokenizer else {"tokens": own})
            start += segment["n_tokens"]

    def sample(self, sample_id: int) -> list[Reading]:
        """All readings of a sample until the planned end: from the order's inverse, without a scan of the record.

        Raises
        ------
        UserError
            When there is no such sample; says the range.
        """
        if not 0 <= sample_id < self.reader.n:
            raise UserError(f"sample {sample_id}: out of range, {self.name} has samples 0 … {self.reader.n - 1}")
        if sample_id >= self.reader.n_trainable:
            return []  # sealed: in the reach of no order
        places = self.order.locate(sample_id, batches=self.steps)
        epochs = self.order.epochs(np.array([b * self.order.batch_size + s for b, s in places], dtype=np.int64))
        return [
            Reading(batch_id, slot, epoch, self._loss(batch_id, slot, sample_id))
            for (batch_id, slot), epoch in zip(places, epochs.tolist(), strict=True)
        ]

    def _loss(self, batch_id: int, slot: int, sample_id: int) -> float | None:
        if batch_id >= self.batches_read:
            return None
        rows = self._recorded(batch_id)
        if (read := rows["sample_id"][slot].as_py()) != sample_id:
            raise UserError(
                f"{self.name}: batch {batch_id} slot {slot} read sample {read}, its order says {sample_id}; "
                "run eval verify"
            )
        loss: float = rows["loss"][slot].as_py()
        return loss


def _listed(steps: list[int]) -> str:
    """Checkpoints for an error: all, or the first and last of many."""
    names = [f"step-{step}" for step in steps]
    if len(names) > SHOWN:
        names = [*names[: SHOWN // 2], "…", *names[-SHOWN // 2 :]]
    return ", ".join(names) or "none yet"
