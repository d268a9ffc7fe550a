"""Packing: several samples in one sequence, by first-fit decreasing, so that little of it is padding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.data.corpus import digest


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


def packed_samples(samples: Sequence[dict[str, Any]], capacity: int) -> Iterator[dict[str, Any]]:
    """Pack the samples of one side of the seal; what is packed has the same fields, and `segments`, its samples."""
    lengths, sets = (np.array([s[name] for s in samples], dtype=np.int64) for name in ("n_tokens", "set_id"))
    for members in pack(lengths, sets, capacity):
        yield _joined([samples[i] for i in members.tolist()])


def _joined(segments: list[dict[str, Any]]) -> dict[str, Any]:
    """Some samples as one; a span of targets moves with its segment, whose first token is never scored."""
    assert all(len(s["spans"]) == 0 or s["spans"].min() > 0 for s in segments), "a first token has nothing before it"
    starts = np.concatenate([[0], np.cumsum([s["n_tokens"] for s in segments])]).astype(np.int64)
    tokens = np.concatenate([s["tokens"] for s in segments])
    spans = np.concatenate([s["spans"] + start for s, start in zip(segments, starts, strict=False)])
    targets = np.zeros(len(tokens), dtype=np.bool_)
    for first, last in spans:
        targets[first:last] = True
    return segments[0] | {
        "tokens": tokens,
        "spans": spans,
        "digest": digest(tokens, targets, starts[:-1]),
        "n_tokens": len(tokens),
        "n_targets": int(targets.sum()),
        "document": joined_document([s["document"] for s in segments]),
        "rows": [row for s in segments for row in s["rows"]],
        **{name: shared([s[name] for s in segments]) for name in ("category", "author")},
        "segments": segments,
    }


def joined_document(documents: Sequence[int]) -> int:
    """What stands for the documents of a packed sample: int64, a hash of theirs; a single one for itself."""
    if len(documents) == 1:
        return documents[0]
    state = hashlib.blake2b(np.array(documents, dtype="<i8").data, digest_size=8)
    return int.from_bytes(state.digest(), "little", signed=True)


def shared(values: Sequence[str]) -> str:
    """The value that all segments have; empty where they differ."""
    return values[0] if len(set(values)) == 1 else ""
