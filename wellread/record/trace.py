"""From a text back to the readings: the longest spans of it that a checkpoint has read, and when it read them.

A span is a sequence of tokens. It occurs where a sample that was read, or one segment of a packed sample, contains the
same tokens. A span is maximal if no longer span of the text contains it and occurs, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.columns import consecutive
from wellread.corpus.decoder import Decoder
from wellread.corpus.read import Corpus
from wellread.corpus.segments import Segments
from wellread.corpus.suffixes import Index
from wellread.record.index import Bounds, Lookup, TooManyPlaces, indexed, scanned
from wellread.record.opened import Run
from wellread.record.samples import SamplesTable

Ints = NDArray[np.int64]
COLUMNS = ["sample_id", "batch_id", "slot", "loss"]
ROWS_AT_ONCE = 1 << 18
KEPT = 1 << 20
"""Most readings that are kept in memory, about 30 bytes each."""


@dataclass(frozen=True, eq=False)
class Match:
    """A maximal span of a text, in tokens."""

    first: int
    """Index of its first token in the text."""
    stop: int
    """Index after its last token."""
    units: Ints
    """The sample of each occurrence, or its segment if the corpus is packed; (occurrences,) ascending."""


@dataclass(frozen=True, eq=False)
class Span:
    """A maximal span of a text, in characters."""

    text: str
    start: int
    """First character in the text."""
    end: int
    """Character after the last."""
    match: Match


Columns = tuple[Ints, Ints, Ints, NDArray[np.float32]]
"""Sample id, batch id, slot and loss of readings, by time."""


@dataclass(frozen=True, eq=False)
class Readings:
    """The readings before a step. Its memory does not depend on their number, since they are read again when needed."""

    counts: Ints
    """(n,) of each sample."""
    pieces: Callable[[], Iterable[Columns]]
    """Returns all readings in pieces, by time."""

    @classmethod
    def of(cls, run: Run, step: int) -> Readings:
        """Count the readings before `step` in the record; those of a short record are kept.

        Raises
        ------
        UserError
            When the record does not contain all batches before `step`, or a part of it is damaged.
        """
        record = run.record

        def pieces() -> Iterator[Columns]:
            for _, _, table in record.pieces(COLUMNS, ROWS_AT_ONCE, step):
                sample_id, batch_id, slot, loss = (table.column(name).to_numpy() for name in COLUMNS)
                yield sample_id.astype(np.int64), batch_id.astype(np.int64), slot.astype(np.int64), loss

        if sum(part["rows"] for part in record.parts if part["from"] < step) <= KEPT:
            short = list(pieces())
            return cls.counted(run.corpus.n, lambda: short)
        ids = (table.column("sample_id").to_numpy() for _, _, table in record.pieces(COLUMNS[:1], ROWS_AT_ONCE, step))
        return cls(_counts(run.corpus.n, ids), pieces)

    @classmethod
    def counted(cls, n: int, pieces: Callable[[], Iterable[Columns]]) -> Readings:
        """Count these readings of a corpus of `n` samples."""
        return cls(_counts(n, (sample_id for sample_id, *_ in pieces())), pieces)

    def first(self, groups: Sequence[Ints], most: int | None = None) -> list[Columns]:
        """The readings of the samples of each group, by time.

        Parameters
        ----------
        groups : sequence of int64[samples]
            Ascending ids. A reading is listed once for each place in the group that has its sample.
        most : int, optional
            Only the first ones of each group.

        Returns
        -------
        list of (place in the group, batch id, slot, loss)
        """
        missing = [int(self.counts[group].sum()) for group in groups]
        missing = missing if most is None else [min(n, most) for n in missing]
        none = np.empty(0, dtype=np.int64)
        parts: list[list[Columns]] = [[(none, none, none, np.empty(0, dtype=np.float32))] for _ in groups]
        is_in_a_group = np.zeros(len(self.counts), dtype=np.bool_)
        for group in groups:
            is_in_a_group[group] = True
        for sample_id, batch_id, slot, loss in self.pieces() if any(missing) else ():
            rows = np.flatnonzero(is_in_a_group[sample_id])
            ids = sample_id[rows]
            for number, group in enumerate(groups):
                low, high = (np.searchsorted(group, ids, side) for side in ("left", "right"))
                places = consecutive(low, high - low)[: missing[number]]
                of = np.repeat(rows, high - low)[: missing[number]]
                missing[number] -= len(places)
                parts[number].append((places, batch_id[of], slot[of], loss[of]))
            if not any(missing):
                break
        return [_joined(each) for each in parts]


def _joined(parts: Sequence[Columns]) -> Columns:
    places, batch_id, slot, loss = ([part[i] for part in parts] for i in range(4))
    return np.concatenate(places), np.concatenate(batch_id), np.concatenate(slot), np.concatenate(loss)


def _counts(n: int, pieces: Iterable[Ints]) -> Ints:
    """How often each of `n` ids occurs."""
    counts = np.zeros(n, dtype=np.int64)
    for ids in pieces:
        counts += np.bincount(ids, minlength=n)
    return counts


@dataclass(frozen=True, eq=False)
class Tracer:
    """Traces texts to what a checkpoint has read."""

    corpus: Corpus
    decoder: Decoder
    readings: Readings
    lookup: Lookup

    @classmethod
    def of(cls, run: Run, step: int, index: Index | None) -> Tracer:
        """Trace to what `run` has read before `step`; without an index the trainable tokens are scanned.

        Raises
        ------
        UserError
            When the record does not contain all batches before `step`, or a part of it is damaged.
        """
        corpus = run.corpus
        lookup = scanned(corpus, int(corpus.offsets[corpus.n_trainable])) if index is None else indexed(index)
        return cls(corpus, run.tokenizer, Readings.of(run, step), lookup)

    @cached_property
    def bounds(self) -> Bounds:
        """The sequences that the model reads in isolation."""
        return Bounds.of(self.corpus)

    @cached_property
    def _read(self) -> NDArray[np.bool_]:
        """Whether each sample or segment was read."""
        samples = self.readings.counts > 0
        return samples[self.samples_of(np.arange(len(self.bounds.starts)))] if self.corpus.packed else samples

    def samples_of(self, units: Ints) -> Ints:
        """Ids of the samples that contain these segments; of a corpus without packing, the units themselves."""
        return Segments(self.corpus).sample_of(units) if self.corpus.packed else units

    def trace(self, text: str, least: int) -> tuple[list[Span], int]:
        """Maximal spans of `text` of at least `least` tokens that were read, by their start; number of its tokens."""
        (traced,) = self.traces([text], least)
        return traced

    def traces(self, texts: Sequence[str], least: int) -> list[tuple[list[Span], int]]:
        """The same for several texts, looked up at once."""
        encoded = [self.decoder.encode(text) for text in texts]
        of_all = self.matches([np.array(ids, dtype=np.int64) for ids, _ in encoded], least)
        return [
            ([_span(text, places, match) for match in matches], len(ids))
            for text, (ids, places), matches in zip(texts, encoded, of_all, strict=True)
        ]

    def matches(self, texts: Sequence[NDArray[Any]], least: int) -> list[list[Match]]:
        """Maximal spans of several texts of token ids, as many looked up at once as the memory allows."""
        try:
            return self._matches(texts, least)
        except TooManyPlaces:
            if len(texts) == 1:
                raise
            half = len(texts) // 2
            return self.matches(texts[:half], least) + self.matches(texts[half:], least)

    def _matches(self, texts: Sequence[NDArray[Any]], least: int) -> list[list[Match]]:
        matches: list[list[Match]] = [[] for _ in texts]
        long = [(number, ids) for number, ids in enumerate(texts) if len(ids) >= least]
        if not long or not self.readings.counts.any():
            return matches
        windows = np.concatenate([np.lib.stride_tricks.sliding_window_view(ids, least) for _, ids in long])
        owner = np.concatenate([np.full(len(ids) - least + 1, number) for number, ids in long])
        position = np.concatenate([np.arange(len(ids) - least + 1) for _, ids in long])
        numbers, places = self.lookup(windows)
        units = self.bounds.units(places, least)
        read = (units >= 0) & self._read[np.maximum(units, 0)]
        numbers, places, units = numbers[read], places[read], units[read]
        for text, first, stop, where in _maximal(*_runs(owner[numbers], units, position[numbers], places, least)):
            matches[text].append(Match(first, stop, where))
        return matches

    def objects(self, spans: Sequence[Span], most: int | None = None) -> list[dict[str, Any]]:
        """One object per span: text, start, end, count, and the readings of the samples that contain it, by time.

        Parameters
        ----------
        most : int, optional
            Only the first ones of the readings of each span.
        """
        of_spans = [np.unique(span.match.units) for span in spans]
        units = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *of_spans]))
        origins = dict(zip(units.tolist(), self._origins(units), strict=True))
        objects = []
        rows = self.readings.first([self.samples_of(each) for each in of_spans], most)
        for span, of_span, (places, *where, loss) in zip(spans, of_spans, rows, strict=True):
            of = of_span[places]
            columns = [self.samples_of(of), *where]
            values = zip(of.tolist(), *(each.tolist() for each in columns), loss.tolist(), strict=True)
            readings = [_reading(origins[unit], *row) for unit, *row in values]
            place = {"text": span.text, "start": span.start, "end": span.end}
            objects.append({**place, "count": len(span.match.units), "readings": readings})
        return objects

    def n_readings(self, span: Span) -> int:
        """Number of readings of the samples that contain a span."""
        return int(self.readings.counts[self.samples_of(np.unique(span.match.units))].sum())

    def _origins(self, units: Ints) -> list[dict[str, Any]]:
        """Source and row of samples or segments; a list of rows where windows are cut from a stream of documents."""
        file = self.corpus.path / ("segments.parquet" if self.corpus.packed else "samples.parquet")
        windows = self.corpus.meta.get("packing") == "stream"
        return [
            {"source": row["source"], "row": row["rows"] if windows or len(row["rows"]) != 1 else row["rows"][0]}
            for row in SamplesTable(file).rows(units)
        ]


def _reading(origin: dict[str, Any], sample_id: int, batch_id: int, slot: int, loss: float) -> dict[str, Any]:
    """One reading; `origin` is source and row of its sample, or of one of its segments."""
    place = {"batch": batch_id, "step": batch_id + 1, "slot": slot}
    return {"sample_id": sample_id, **origin, **place, "loss": loss, "loss_now": None}


def covered(matches: Sequence[Match], n_tokens: int) -> int:
    """Number of tokens of a text that are in at least one match."""
    inside = np.zeros(n_tokens, dtype=np.bool_)
    for match in matches:
        inside[match.first : match.stop] = True
    return int(inside.sum())


def _span(text: str, places: Sequence[tuple[int, int]], match: Match) -> Span:
    """The characters of a match; `places` are those of each token."""
    start, end = places[match.first][0], places[match.stop - 1][1]
    return Span(text[start:end], start, end, match)


def _runs(text: Ints, units: Ints, position: Ints, places: Ints, size: int) -> tuple[Ints, Ints, Ints, Ints]:
    """Join windows that match one after the other: text, unit, first token and end of each span that matches."""
    order = np.lexsort((position, places - position, units, text))
    text, units, position, shift = text[order], units[order], position[order], (places - position)[order]
    begins = np.ones(len(text), dtype=np.bool_)
    same = (text[1:] == text[:-1]) & (units[1:] == units[:-1]) & (shift[1:] == shift[:-1])
    begins[1:] = ~(same & (position[1:] == position[:-1] + 1))
    ends = np.ones(len(text), dtype=np.bool_)
    ends[:-1] = begins[1:]
    return text[begins], units[begins], position[begins], position[ends] + size


def _maximal(text: Ints, units: Ints, first: Ints, stop: Ints) -> list[tuple[int, int, int, Ints]]:
    """Spans that no other span of the same text contains, by text and first token, with the unit of each occurrence."""
    order = np.lexsort((units, -stop, first, text))
    text, units, first, stop = text[order], units[order], first[order], stop[order]
    new = np.ones(len(text), dtype=np.bool_)
    new[1:] = (text[1:] != text[:-1]) | (first[1:] != first[:-1]) | (stop[1:] != stop[:-1])
    groups = np.flatnonzero(new).tolist()
    spans: list[tuple[int, int, int, Ints]] = []
    reach = (-1, -1)  # text, and the end of the last span of it
    for low, high in pairwise([*groups, len(text)]):
        place = (int(text[low]), int(stop[low]))
        if place > reach:
            spans.append((place[0], int(first[low]), place[1], units[low:high]))
            reach = place
    return spans
