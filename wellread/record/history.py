"""What was read and what will be: samples under an order, with the record of a run where there is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wellread.checkpoint import Checkpoint, list_checkpoints
from wellread.corpus.read import Corpus, SampleReader
from wellread.corpus.segments import FILE as SEGMENTS
from wellread.corpus.segments import Segments
from wellread.errors import UserError
from wellread.order.permutation import Order
from wellread.order.store import open_order
from wellread.record.reader import Record
from wellread.record.samples import SamplesTable
from wellread.run import RunDirectory

if TYPE_CHECKING:
    import pyarrow

    from wellread.corpus.tokenizer import Tokenizer

SHOWN = 12
"""Names listed in an error before the list is cut."""


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

    @classmethod
    def of_run(cls, path: str) -> History:
        """Open a run.

        Raises
        ------
        UserError
            When `path` is none, or its corpus is not there.
        """
        run = RunDirectory.open(path)
        corpus, identity = Corpus.open(run.corpus), run.manifest()["identity"]
        return cls(
            name=str(run.path),
            reader=corpus,
            order=open_order(run),
            steps=int(identity["steps"]),
            tokenizer_directory=corpus.tokenizer,
            record=Record.open(run.record) if (run.record / "head.json").exists() else None,
            checkpoints=list_checkpoints(run.checkpoints),
        )

    @classmethod
    def of_corpus(cls, prefix: str, order: str, batch_size: int | None, tokenizer: Path | None) -> History:
        """Open a Megatron set or a compiled corpus under a named order, without a run.

        Parameters
        ----------
        prefix
            Path of PREFIX.idx without its suffix, or the directory of a compiled corpus.
        order
            ``sequential``; ``pythia``, the same once every size is that of Pythia's pre-shuffled Pile; or
            ``megatron:DOC_IDX.npy,SAMPLE_IDX.npy,SHUFFLE_IDX.npy``, index maps cached by GPT-NeoX.
        batch_size
            Samples a batch; Pythia's 1,024 needs no saying with the order ``pythia``.

        Raises
        ------
        UserError
            When the files or the order cannot be used.
        """
        reader, size = _open_samples(prefix, order, batch_size)
        sequence = Order(kind="sequential", seed=0, n=reader.n_trainable, batch_size=size)
        directory = tokenizer or (reader.tokenizer if isinstance(reader, Corpus) else None)
        return cls(name=prefix, reader=reader, order=sequence, steps=sequence.steps(1), tokenizer_directory=directory)

    @property
    def batches_read(self) -> int:
        """Batches that the record holds."""
        return self.record.batches if self.record else 0

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The corpus's tokenizer; None when none was given."""
        from wellread.corpus.tokenizer import Tokenizer

        return Tokenizer.load(self.tokenizer_directory) if self.tokenizer_directory else None

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

    def batches(self, start: int, stop: int) -> Iterator[BatchRead]:
        """Yield batches start … stop-1 one by one: those read from the record, those to come from the order."""
        return map(self._batch, range(start, stop))

    def numbers(self, batch_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32] | None]:
        """Sample ids, targets and losses (None: not read yet) of one batch in slot order; no text is touched."""
        if batch_id >= self.batches_read:
            ids = self.order.batch(batch_id)
            return ids, self.reader.n_targets(ids), None
        low, part = self._part(batch_id)
        rows = part.slice((batch_id - low) * self.order.batch_size, self.order.batch_size)
        return rows["sample_id"].to_numpy(), rows["n_targets"].to_numpy(), rows["loss"].to_numpy()

    def _part(self, batch_id: int) -> tuple[int, pyarrow.Table]:
        """First batch id and rows of the part that holds a batch; the last one asked for is kept."""
        assert self.record is not None
        kept: dict[str, Any] = self._kept
        if not kept or not kept["from"] <= batch_id < kept["to"]:
            part = next(p for p in self.record.parts if p["from"] <= batch_id < p["to"])
            columns = ["sample_id", "n_targets", "loss", "skipped"]
            kept.update(part, table=self.record.table(columns, (part["from"], part["to"])))
        return int(kept["from"]), kept["table"]

    def _skipped(self, batch_id: int) -> bool:
        low, part = self._part(batch_id)
        return bool(part["skipped"][(batch_id - low) * self.order.batch_size].as_py())

    @cached_property
    def _kept(self) -> dict[str, Any]:
        return {}

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
            skipped=losses is not None and self._skipped(batch_id),
        )

    def _add_content(self, segments: list[dict[str, Any]], tokens: NDArray[Any]) -> None:
        """Give each segment of a packed sample its text; its tokens where there is no tokenizer."""
        start = 0
        for segment in segments:
            own = tokens[start : start + segment["n_tokens"]].tolist()
            segment.update({"text": self.tokenizer.decode(own)} if self.tokenizer else {"tokens": own})
            start += segment["n_tokens"]

    def readings(self, sample_id: int) -> list[Reading]:
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
        low, part = self._part(batch_id)
        row = (batch_id - low) * self.order.batch_size + slot
        if (read := part["sample_id"][row].as_py()) != sample_id:
            raise UserError(
                f"{self.name}: batch {batch_id} slot {slot} read sample {read}, its order says {sample_id}; "
                "run eval verify"
            )
        loss: float = part["loss"][row].as_py()
        return loss


def _open_samples(prefix: str, order: str, batch_size: int | None) -> tuple[SampleReader, int]:
    """Samples in the order that is asked for, and the batch size."""
    from wellread.data.sources.index_maps import IndexMaps
    from wellread.data.sources.megatron import PYTHIA_BATCH, Megatron

    if order not in ("sequential", "pythia") and not order.startswith("megatron:"):
        raise UserError(
            f"--order {order}: choose sequential, pythia (sequential, and the sizes are checked) or "
            "megatron:DOC_IDX.npy,SAMPLE_IDX.npy,SHUFFLE_IDX.npy"
        )
    if batch_size is None and order != "pythia":
        raise UserError(f"--batch_size is missing; name it, e.g. {PYTHIA_BATCH} for Pythia")
    size = PYTHIA_BATCH if batch_size is None else batch_size
    if (Path(prefix) / "corpus.json").is_file() and order == "sequential":
        return Corpus.open(prefix), size
    sequences = Megatron.open(prefix)
    if order == "pythia":
        sequences.check_pythia_order(size)
    return (IndexMaps.open(sequences, order) if order.startswith("megatron:") else sequences), size


def _listed(steps: list[int]) -> str:
    """Checkpoints for an error: all, or the first and last of many."""
    names = [f"step-{step}" for step in steps]
    if len(names) > SHOWN:
        names = [*names[: SHOWN // 2], "…", *names[-SHOWN // 2 :]]
    return ", ".join(names) or "none yet"
