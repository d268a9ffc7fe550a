"""Groups of samples, derived from the record of a run: read by a checkpoint, not yet read (`unread`), sealed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eval.randomness import Randomness
from eval.related import Related
from eval.separation import Ints, codes_of
from wellread.corpus import canaries
from wellread.units import plural

if TYPE_CHECKING:
    from wellread.corpus.read import Corpus
    from wellread.corpus.segments import Segments
    from wellread.record.reader import Record
    from wellread.run import RunDirectory

READ, UNREAD, SEALED = "read", "unread", "sealed"
SHUFFLED = "shuffled"
"""Group of the control with shuffled labels: the result of chance."""


@dataclass(frozen=True)
class Groups:
    """Which samples belong to which group at a step; for a packed corpus, segments instead of samples."""

    corpus: Corpus | Segments
    documents: Ints
    """Document of each sample, int64[corpus.n]."""
    first_read: Ints
    """Batch in which each trainable sample is first learned from, int64[n_trainable]; `last` or above if never."""
    last: int
    """Step of the last checkpoint."""
    max_samples: int
    seed: int
    record: Path | None = None
    """Record of the run."""
    selected: Ints | None = None
    """Trainable samples of insertions: they were selected, so they do not count as unread."""
    withheld: Ints | None = None
    """Sealed samples that are in no group, because they have another use."""

    @classmethod
    def of(cls, run: RunDirectory, max_samples: int, seed: int) -> Groups:
        """Derive the groups of a run from its record; the run must have checkpoints."""
        from wellread.checkpoint import list_checkpoints
        from wellread.corpus.read import Corpus
        from wellread.corpus.segments import Segments
        from wellread.record.reader import Record

        corpus, checkpoints = Corpus.open(run.corpus), list_checkpoints(run.checkpoints)
        last = checkpoints[-1].step
        documents = corpus.samples().column("document").to_numpy()
        first_read = np.full(corpus.n_trainable, last, dtype=np.int64)
        batch_id, sample_id = readings(Record.open(run.record), last)
        np.minimum.at(first_read, sample_id, batch_id)
        first_read[corpus.n_ordinary :] = last  # canaries are in no group: they are not of the other samples' kind
        selected = Randomness.of(run).selected
        if corpus.packed:
            segments = Segments(corpus)
            documents = segments.table.column("document").to_numpy()
            samples = segments.sample_of(np.arange(segments.n_trainable))
            selected = np.flatnonzero(np.isin(samples, selected))
            return cls(segments, documents, first_read[samples], last, max_samples, seed, run.record, selected)
        return cls(corpus, documents, first_read, last, max_samples, seed, run.record, selected)

    @cached_property
    def document_codes(self) -> Ints:
        """Number of the document of each trainable sample, from 0; int64[corpus.n_trainable]."""
        return codes_of(self.documents[: self.corpus.n_trainable])

    @cached_property
    def related(self) -> Related:
        """Which trainable samples share text."""
        return Related.of(self.corpus, self.documents[: self.corpus.n_trainable])

    @cached_property
    def keys(self) -> Ints:
        """A random number for each sample, int64[corpus.n]; those with the lowest ones are drawn for a group."""
        return np.random.default_rng(self.seed).integers(2**63, size=self.corpus.n)

    @cached_property
    def _last_history(self) -> dict[int, tuple[Ints, Ints]]:
        return {}

    def history(self, step: int) -> tuple[Ints, Ints]:
        """Batch of the last reading before `step`, -1 if none, and number of readings; int64[n_trainable] each."""
        if step not in self._last_history:
            self._last_history.clear()  # steps come one after the other
            self._last_history[step] = self._history(step)
        return self._last_history[step]

    def _history(self, step: int) -> tuple[Ints, Ints]:
        from wellread.corpus.segments import Segments
        from wellread.record.reader import Record

        assert self.record
        packed = self.corpus if isinstance(self.corpus, Segments) else None
        n = packed.corpus.n_trainable if packed else self.corpus.n_trainable
        last_read, times = last_readings(Record.open(self.record), step, n)
        if packed:
            samples = packed.sample_of(np.arange(packed.n_trainable))
            return last_read[samples], times[samples]
        return last_read, times

    def categories(self) -> list[str]:
        """Component of each sample: its data set, or its category where there is only one data set; (corpus.n,)."""
        from wellread.corpus.segments import Segments

        table = self.corpus.table if isinstance(self.corpus, Segments) else self.corpus.samples()
        sources = {*table.column("source").unique().to_pylist()} - {canaries.SET}
        column = table.column("source" if len(sources) > 1 else "category")
        return [value or "" for value in column.to_pylist()]

    def at(self, step: int) -> dict[str, Ints]:
        """Drawn sample ids of each group at `step`, ascending. What shares text with read samples is not unread."""
        unread = (self.first_read < self.last) & (self.related.earliest(self.first_read) >= step)
        if self.selected is not None:
            unread[self.selected] = False
        return {
            READ: self._draw(np.flatnonzero(self.first_read < step)),
            UNREAD: self._draw(np.flatnonzero(unread)),
            SEALED: self._draw(self.sealed),
        }

    @property
    def sealed(self) -> Ints:
        """All sealed samples but those withheld, ascending."""
        sealed = np.arange(self.corpus.n_trainable, self.corpus.n)
        return sealed if self.withheld is None else np.setdiff1d(sealed, self.withheld)

    def all(self, step: int) -> Ints:
        """Sample ids of all groups at `step`, ascending."""
        return np.sort(np.concatenate(list(self.at(step).values())))

    def _draw(self, ids: Ints) -> Ints:
        """The `max_samples` ids with the lowest keyed hash: a uniform draw that changes little when the group grows."""
        if ids.size <= self.max_samples:
            return ids
        return np.sort(ids[np.argpartition(self.keys[ids], self.max_samples)[: self.max_samples]])

    def notes(self, steps: Sequence[int]) -> Iterator[str]:
        """What is left out at these steps, and why."""
        sizes = [ids.size for step in steps for ids in self.at(step).values()]
        if self.max_samples in sizes:
            yield f"scores at most {plural(self.max_samples, 'sample')} per group, drawn with seed {self.seed}"


def draw_documents(ids: Ints, documents: Ints, most: int, seed: int) -> Ints:
    """The ids of at most `most` documents, drawn by `seed`, in their order.

    Parameters
    ----------
    documents
        Document of each id, int64[ids].
    """
    unique = np.unique(documents)
    if unique.size <= most:
        return ids
    drawn_documents = np.random.default_rng(seed).permutation(unique)[:most]
    return np.asarray(ids[np.isin(documents, drawn_documents)])


def readings(record: Record, before: int) -> tuple[Ints, Ints]:
    """Batch and sample of each reading before batch `before`, int64[readings]; skipped batches are not learned from."""
    table = record.table(columns=["batch_id", "sample_id", "skipped"], batches=(0, before))
    batch_id, sample_id, skipped = (table.column(name).to_numpy() for name in table.column_names)
    return batch_id[~skipped], sample_id[~skipped]


def last_readings(record: Record, before: int, n: int) -> tuple[Ints, Ints]:
    """Batch of the last reading before batch `before`, -1 if none, and number of readings, of samples 0 … `n` - 1.

    int64[n] each.
    """
    last, times = np.full(n, -1, dtype=np.int64), np.zeros(n, dtype=np.int64)
    batch_id, sample_id = readings(record, before)
    np.maximum.at(last, sample_id, batch_id)
    np.add.at(times, sample_id, 1)
    return last, times
