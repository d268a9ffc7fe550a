"""Packing: several samples in one sequence, by first-fit decreasing, so that little of it is padding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.columns import DIGEST, RAGGED, Columns, digest_of_spans, take


def first_fit_decreasing(lengths: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """Put items into bins, the longest first, each into the first bin that has room for it.

    Uses at most 11/9 of the fewest bins possible, plus 6/9 (Dósa 2007, https://doi.org/10.1007/978-3-540-74450-4_1).
    Items of one length are placed together, so the time is that of numpy over (distinct lengths * bins).

    Parameters
    ----------
    lengths : (n,) int64, from 1 to `capacity`

    Returns
    -------
    (n,) int64
        Bin of each item: 0, 1, 2, … in the order in which they were opened.
    """
    order = np.argsort(-lengths, kind="stable")
    bins = np.empty(len(lengths), dtype=np.int64)
    room = np.empty(0, dtype=np.int64)
    for items in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1) if len(order) else ():
        length = int(lengths[items[0]])
        open_bins = np.flatnonzero(room >= length)
        times = room[open_bins] // length
        needed = int(np.searchsorted(np.cumsum(times), len(items))) + 1
        places = np.repeat(open_bins[:needed], times[:needed])[: len(items)]
        further = np.arange(len(items) - len(places)) // (capacity // length) + len(room)
        bins[items] = np.concatenate([places, further])
        room = np.concatenate([room, np.full(len(np.unique(further)), capacity, dtype=np.int64)])
        room -= length * np.bincount(bins[items], minlength=len(room))
    return bins


def pack(lengths: NDArray[np.int64], sets: NDArray[np.int64], capacity: int) -> list[NDArray[np.int64]]:
    """Divide samples into packed ones, each of one set alone, so that its loss is that of a set.

    Parameters
    ----------
    lengths : (n,) tokens of each sample, at most `capacity`
    sets : (n,) set of each sample

    Returns
    -------
    list of int64 arrays
        The samples of each packed one, ascending; packed ones stand in the order of their first samples.
    """
    packed = []
    for set_id in np.unique(sets):
        own = np.flatnonzero(sets == set_id)
        bins = first_fit_decreasing(lengths[own], capacity)
        order = np.argsort(bins, kind="stable")
        packed += np.split(own[order], np.flatnonzero(np.diff(bins[order])) + 1)
    return sorted(packed, key=lambda members: int(members[0]))


@dataclass(frozen=True)
class Packed:
    """Samples of one side of the seal, packed."""

    samples: Columns
    """The packed samples; their tokens, spans and rows are those of their segments, one after the other."""
    segments: Columns
    """What they are made of: the samples as they were, in the order in which they now lie."""
    n_segments: NDArray[np.int64]
    """Segments of each packed sample."""


def packed(samples: Columns, capacity: int) -> Packed:
    """Pack samples into sequences of at most `capacity` tokens; a span of targets moves with its segment."""
    assert samples["spans"].size == 0 or samples["spans"].min() > 0, "a first token has nothing before it"
    members = pack(samples["lengths"], samples["set_id"], capacity)
    n_segments = np.array([len(each) for each in members], dtype=np.int64)
    segments = take(samples, np.concatenate([np.empty(0, dtype=np.int64), *members]))
    bounds = np.concatenate([[0], np.cumsum(n_segments)])
    heads = bounds[:-1]
    starts = np.cumsum(segments["lengths"]) - segments["lengths"]  # of each segment, among the tokens of all
    within = starts - np.repeat(starts[heads], n_segments)
    made = {name: values if name in RAGGED else values[heads] for name, values in segments.items()}
    made |= {name: np.add.reduceat(segments[name], heads) for name in RAGGED.values()}
    made["spans"] = (segments["spans"] + np.repeat(within, segments["n_spans"])[:, None]).astype(np.int32)
    own = [slice(*pair) for pair in pairwise(bounds.tolist())]
    made["digest"] = np.array([*_digests(made, [within[each] for each in own])], dtype=DIGEST).reshape(-1)
    documents = segments["document"].tolist()
    made["document"] = np.array([joined_document(documents[each]) for each in own], dtype=np.int64)
    for name in ("category", "author"):
        made[name] = np.array([shared(segments[name][each].tolist()) for each in own], dtype=np.str_)
    return Packed(made, segments, n_segments)


def _digests(samples: Columns, starts: Sequence[NDArray[np.int64]]) -> Iterator[bytes]:
    """Digest of each sample, given where its segments begin."""
    tokens, spans = (np.concatenate([[0], np.cumsum(samples[name])]).tolist() for name in ("lengths", "n_spans"))
    for (first, stop), (a, b), of in zip(pairwise(tokens), pairwise(spans), starts, strict=True):
        yield digest_of_spans(samples["tokens"][first:stop], samples["spans"][a:b], of)


def joined_document(documents: Sequence[int]) -> int:
    """What stands for the documents of a packed sample: int64, a hash of theirs; a single one for itself."""
    if len(documents) == 1:
        return documents[0]
    state = hashlib.blake2b(np.array(documents, dtype="<i8").data, digest_size=8)
    return int.from_bytes(state.digest(), "little", signed=True)


def shared(values: Sequence[str]) -> str:
    """The value that all segments have; empty where they differ."""
    return values[0] if len(set(values)) == 1 else ""
