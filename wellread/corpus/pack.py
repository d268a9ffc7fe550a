"""Packing: several samples in one sequence, by first-fit decreasing, which leaves little padding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.columns import DIGEST, RAGGED, Columns, digest_of_spans, take


def first_fit_decreasing(lengths: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """Put items into bins, the longest first, each into the first bin with enough free space.

    Uses at most 11/9 * (minimum number of bins) + 6/9 bins (Dósa 2007, https://doi.org/10.1007/978-3-540-74450-4_1).
    Items of equal length are placed together with numpy, so the time grows with (distinct lengths * bins).

    Parameters
    ----------
    lengths : (n,) int64, from 1 to `capacity`

    Returns
    -------
    (n,) int64
        Bin of each item; bins are numbered 0, 1, 2, … in the order in which they are opened.
    """
    order = np.argsort(-lengths, kind="stable")
    bins = np.empty(len(lengths), dtype=np.int64)
    free = np.empty(0, dtype=np.int64)
    for items in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1) if len(order) else ():
        length = int(lengths[items[0]])
        open_bins = np.flatnonzero(free >= length)
        times = free[open_bins] // length
        needed = int(np.searchsorted(np.cumsum(times), len(items))) + 1
        places = np.repeat(open_bins[:needed], times[:needed])[: len(items)]
        new_bins = np.arange(len(items) - len(places)) // (capacity // length) + len(free)
        bins[items] = np.concatenate([places, new_bins])
        free = np.concatenate([free, np.full(len(np.unique(new_bins)), capacity, dtype=np.int64)])
        free -= length * np.bincount(bins[items], minlength=len(free))
    return bins


def pack(
    lengths: NDArray[np.int64], sets: NDArray[np.int64], capacity: int, unpacked_set: int | None = None
) -> list[NDArray[np.int64]]:
    """Group samples into packed samples.

    All samples of a packed sample are of the same data set, so that its loss counts for one data set.

    Parameters
    ----------
    lengths : (n,) number of tokens of each sample, at most `capacity`
    sets : (n,) data set of each sample
    unpacked_set : int, optional
        Data set whose samples are not packed: each is a packed sample of its own.

    Returns
    -------
    list of int64 arrays
        Indices of the samples of each packed sample, ascending; packed samples are sorted by their first sample.
    """
    packed = []
    for set_id in np.unique(sets):
        in_set = np.flatnonzero(sets == set_id)
        bins = np.arange(len(in_set)) if set_id == unpacked_set else first_fit_decreasing(lengths[in_set], capacity)
        order = np.argsort(bins, kind="stable")
        packed += np.split(in_set[order], np.flatnonzero(np.diff(bins[order])) + 1)
    return sorted(packed, key=lambda members: int(members[0]))


@dataclass(frozen=True)
class Packed:
    """Packed samples, all trainable or all sealed."""

    samples: Columns
    """The packed samples; their tokens, spans and rows are those of their segments, concatenated."""
    segments: Columns
    """The samples before packing, in the order in which the packed samples contain them."""
    n_segments: NDArray[np.int64]
    """Number of segments of each packed sample."""


def packed(samples: Columns, capacity: int, unpacked_set: int | None = None) -> Packed:
    """Pack samples into sequences of at most `capacity` tokens; spans of targets are shifted with their segment.

    Samples of data set `unpacked_set` are not packed.
    """
    assert samples["spans"].size == 0 or samples["spans"].min() > 0, "the first token of a sample cannot be a target"
    members = pack(samples["lengths"], samples["set_id"], capacity, unpacked_set)
    n_segments = np.array([len(each) for each in members], dtype=np.int64)
    segments = take(samples, np.concatenate([np.empty(0, dtype=np.int64), *members]))
    bounds = np.concatenate([[0], np.cumsum(n_segments)])
    heads = bounds[:-1]
    starts = np.cumsum(segments["lengths"]) - segments["lengths"]  # of each segment, in the tokens of all samples
    within = starts - np.repeat(starts[heads], n_segments)
    columns = {name: values if name in RAGGED else values[heads] for name, values in segments.items()}
    columns |= {name: np.add.reduceat(segments[name], heads) for name in RAGGED.values()}
    columns["spans"] = (segments["spans"] + np.repeat(within, segments["n_spans"])[:, None]).astype(np.int32)
    slices = [slice(*pair) for pair in pairwise(bounds.tolist())]  # segments of each packed sample
    columns["digest"] = np.array([*_digests(columns, [within[each] for each in slices])], dtype=DIGEST).reshape(-1)
    documents = segments["document"].tolist()
    columns["document"] = np.array([joined_document(documents[each]) for each in slices], dtype=np.int64)
    for name in ("category", "author"):
        columns[name] = np.array([shared(segments[name][each].tolist()) for each in slices], dtype=np.object_)
    return Packed(columns, segments, n_segments)


def _digests(samples: Columns, starts: Sequence[NDArray[np.int64]]) -> Iterator[bytes]:
    """Digest of each sample; `starts` has the first token of each of its segments."""
    tokens, spans = (np.concatenate([[0], np.cumsum(samples[name])]).tolist() for name in ("lengths", "n_spans"))
    for (first, stop), (a, b), segment_starts in zip(pairwise(tokens), pairwise(spans), starts, strict=True):
        yield digest_of_spans(samples["tokens"][first:stop], samples["spans"][a:b], segment_starts)


def joined_document(documents: Sequence[int]) -> int:
    """Document id of a packed sample, int64: a hash of its segments' ids; the id itself for one segment."""
    if len(documents) == 1:
        return documents[0]
    state = hashlib.blake2b(np.array(documents, dtype="<i8").data, digest_size=8)
    return int.from_bytes(state.digest(), "little", signed=True)


def shared(values: Sequence[str]) -> str:
    """The value that all segments have; empty when they differ."""
    return values[0] if len(set(values)) == 1 else ""
