"""The index of a corpus or a Megatron data set, and the places of token windows inside its samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus import suffixes
from wellread.corpus.read import Corpus, SampleReader
from wellread.corpus.suffixes import INDEXED, Index
from wellread.data.sources.megatron import Megatron
from wellread.errors import UserError
from wellread.units import plural

SCANNED = 50_000_000
"""Tokens up to which a scan is fast enough to need no index."""
TOKENS_AT_ONCE = 1 << 21
"""Tokens of one block of a scan; keeps buffers below 100 MiB."""
MOST_PLACES = 1 << 23
"""Most places of the windows of a text; keeps their buffers below 1 GiB."""
BASE = 0x9E3779B97F4A7C15
"""Base of the hashes of a scan, odd; matches are compared token by token after."""
UNSIGNED = {"<i2": "<u2", "<i4": "<u4"}
"""Signed types of tokens of Megatron -> the unsigned type of the same bytes; token ids are not negative."""

Ints = NDArray[np.int64]
Lookup = Callable[[NDArray[Any]], tuple[Ints, Ints]]
"""Windows, (k, size) -> for each match the number of its window and the place of its first token in all tokens."""


class TooManyPlaces(UserError):
    """Windows have more than `MOST_PLACES` places."""


@dataclass(frozen=True, eq=False)
class Bounds:
    """Sequences that are read in isolation: samples, segments of a packed corpus, or sequences of Megatron."""

    starts: Ints
    """First token of each in all tokens, ascending."""
    ends: Ints
    """End of each; between two sequences there may be other tokens."""
    numbers: Ints | None = None
    """Number of each in the reader; None if they are in its order."""

    @classmethod
    def of(cls, reader: Corpus | Megatron) -> Bounds:
        """Bounds of the samples of a reader; of the segments if it is packed."""
        if isinstance(reader, Corpus):
            bounds = np.asarray(reader.segments if reader.packed else reader.offsets)
            return cls(bounds[:-1], bounds[1:])
        starts = np.asarray(reader.pointers) // reader.dtype.itemsize
        order = np.lexsort((reader.sizes, starts))  # empty sequences before the one that begins at the same place
        return cls(starts[order], starts[order] + np.asarray(reader.sizes, dtype=np.int64)[order], order)

    @property
    def overlap(self) -> bool:
        """Whether a token is in several sequences, as Megatron allows; then `units` would miss some of them."""
        return self.numbers is not None and bool((self.starts[1:] < self.ends[:-1]).any())

    def units(self, places: Ints, size: int) -> Ints:
        """Number of the sequence that contains the window of `size` tokens at each place; -1 if it crosses a bound."""
        units = np.searchsorted(self.starts, places, "right") - 1
        inside = (units >= 0) & (places + size <= self.ends[np.maximum(units, 0)])
        return np.where(inside, units if self.numbers is None else self.numbers[units], -1)


def token_files(reader: Corpus | Megatron) -> tuple[tuple[Path, ...], np.dtype[Any]]:
    """Files of the tokens of a reader, and the type of the tokens.

    Raises
    ------
    UserError
        For Megatron files with tokens of other types than uint16 and uint32, or with a token in two parts.
    """
    if isinstance(reader, Corpus):
        return (reader.path / "tokens.bin",), np.dtype(reader.meta["dtype"])
    dtype = np.dtype(UNSIGNED.get(reader.dtype.str, reader.dtype.str))
    for shard in reader.shards:
        if excess := shard.stat().st_size % dtype.itemsize:
            raise UserError(
                f"{shard}: ends {plural(excess, 'byte')} after a token, so it cannot be indexed; join the parts first"
            )
    return reader.shards, dtype


def problems(reader: Corpus | Megatron, *, again: bool = False) -> dict[Path, str]:
    """Files of tokens whose index cannot be used -> why, in a few words; `again` as in `suffixes.problem`."""
    files, dtype = token_files(reader)
    reasons = {file: suffixes.problem(file, dtype, again=again) for file in files}
    return {file: reason for file, reason in reasons.items() if reason}


def open_index(reader: Corpus | Megatron) -> Index | None:
    """The index of a reader; None if a file of tokens has none that can be used: `problems` says why."""
    return None if problems(reader) else _opened(reader)


def _opened(reader: Corpus | Megatron) -> Index:
    files, dtype = token_files(reader)
    return Index(tuple(suffixes.open_suffixes(file, dtype) for file in files))


def usable_index(reader: SampleReader, name: str) -> tuple[Index | None, list[str]]:
    """The index of a reader if it has one that can be used, and what to say about one that is missing or cannot be.

    Parameters
    ----------
    name : str
        What a user gives to ``wellread index``.
    """
    if not isinstance(reader, Corpus | Megatron):
        return None, []
    try:
        files, dtype = token_files(reader)
    except UserError:  # parts of a token in two files: none of them can have an index
        return None, []
    if dtype not in INDEXED:
        return None, []
    n_tokens = sum(file.stat().st_size for file in files) // dtype.itemsize
    lines, reasons = [], problems(reader)
    for file, reason in reasons.items():
        if reason != suffixes.MISSING or n_tokens > SCANNED:
            index = suffixes.index_file(file)
            lines.append(f"{index}: {reason}; scanning {n_tokens:,} tokens instead; run wellread index {name}")
    return None if reasons else _opened(reader), lines


def indexed(index: Index) -> Lookup:
    """Look up windows in an index, all windows at once.

    Raises
    ------
    TooManyPlaces
        When they have more than `MOST_PLACES` places.
    """

    def lookup(windows: NDArray[Any]) -> tuple[Ints, Ints]:
        _refuse_many(index.total(windows), windows)
        return index.matches(windows)

    return lookup


def _refuse_many(n_places: int, windows: NDArray[Any]) -> None:
    if n_places > MOST_PLACES:
        raise TooManyPlaces(
            f"cut off after {MOST_PLACES:,} places: the text has parts of {plural(windows.shape[1], 'token')} that "
            "occur almost everywhere; raise --min, or give another text"
        )


def scanned(corpus: Corpus, stop: int) -> Lookup:
    """Look up windows by a scan of the tokens before `stop`, all windows at once.

    Raises
    ------
    TooManyPlaces
        When they have more than `MOST_PLACES` places.
    """

    def lookup(windows: NDArray[Any]) -> tuple[Ints, Ints]:
        unique, first = np.unique(windows, axis=0, return_inverse=True)
        numbers, places = _scan(corpus, stop, unique)
        order = np.argsort(numbers, kind="stable")
        numbers, places = numbers[order], places[order]
        first = first.reshape(-1)
        low, high = np.searchsorted(numbers, first, "left"), np.searchsorted(numbers, first, "right")
        _refuse_many(int((high - low).sum()), windows)
        parts = [places[a:b] for a, b in zip(low.tolist(), high.tolist(), strict=True)]
        return np.repeat(np.arange(len(first)), high - low), np.concatenate([np.empty(0, dtype=np.int64), *parts])

    return lookup


def _scan(corpus: Corpus, stop: int, windows: NDArray[Any]) -> tuple[Ints, Ints]:
    """Matches of different windows, (k, size): number of the window and place, ascending by place."""
    matches, n_places = [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))], 0
    if len(windows):
        base, hashes = _hashes(windows)
        order = np.argsort(hashes)
        for low, tokens in _blocks(corpus, stop, windows.shape[1]):
            starts = _candidates(tokens, windows)
            rolled = _hash([tokens[starts + j] for j in range(windows.shape[1])], base, len(starts))
            nearest = order[np.minimum(np.searchsorted(hashes[order], rolled), len(order) - 1)]
            equal = hashes[nearest] == rolled
            starts, nearest = starts[equal], nearest[equal]
            for j in range(windows.shape[1]):  # equal hashes prove nothing
                same = tokens[starts + j] == windows[nearest, j]
                starts, nearest = starts[same], nearest[same]
            matches.append((nearest, low + starts))
            n_places += len(starts)
            _refuse_many(n_places, windows)
    numbers, places = zip(*matches, strict=True)
    return np.concatenate(numbers), np.concatenate(places)


def _blocks(corpus: Corpus, stop: int, size: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Blocks of tokens before `stop` with the place of their first; each overlaps the next by `size` - 1 tokens."""
    dtype = np.dtype(corpus.meta["dtype"])
    for low in range(0, max(0, stop - size + 1), TOKENS_AT_ONCE):
        length = min(stop - low, TOKENS_AT_ONCE + size - 1)
        block = np.memmap(corpus.path / "tokens.bin", dtype, "r", offset=low * dtype.itemsize, shape=(length,))
        yield low, np.asarray(block)


def _candidates(tokens: NDArray[Any], windows: NDArray[Any]) -> Ints:
    """Places from which on as many tokens as a window has occur in any of the windows."""
    size, largest = windows.shape[1], max(int(tokens.max()), int(windows.max()))
    in_windows = np.zeros(largest + 1, dtype=np.bool_)
    in_windows[windows.reshape(-1)] = True
    unknown = np.concatenate([[0], np.cumsum(~in_windows[tokens])])
    return np.flatnonzero(unknown[size:] == unknown[:-size])


def _hashes(windows: NDArray[Any]) -> tuple[int, NDArray[np.uint64]]:
    """A base with which different windows have different hashes, and the hashes."""
    base = BASE
    while True:
        hashes = _hash(list(windows.T), base, len(windows))
        if len(np.unique(hashes)) == len(hashes):
            return base, hashes
        base += 2


def _hash(columns: list[NDArray[Any]], base: int, n: int) -> NDArray[np.uint64]:
    """Polynomials of tokens modulo 2^64, (n,)."""
    hashes = np.zeros(n, dtype=np.uint64)
    for column in columns:
        hashes = hashes * np.uint64(base % 2**64) + column.astype(np.uint64) + np.uint64(1)
    return hashes
