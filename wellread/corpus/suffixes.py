"""Suffix arrays over files of tokens: all places of a token sequence in the time of two binary searches.

``tokens.sa`` next to ``tokens.bin`` contains the place of every suffix of the tokens, sorted by the tokens that follow:
uint64, 8 bytes per token. tokengrams (https://github.com/EleutherAI/tokengrams, MIT) writes it, in a process that may
fail without this one; numpy reads it, so that reading needs no further package. ``tokens.sa.json`` binds it to its
tokens: a damaged file or one of other tokens would not fail, but miss matches.
"""

from __future__ import annotations

import os
import subprocess
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.columns import consecutive
from wellread.errors import NOT_ALLOWED, UserError
from wellread.files import checksum, read_json, replacing, sha256_file, with_checksum, write_json

LIBRARY = "tokengrams"
MISSING = "missing"
"""The reason why an index cannot be used if none was written."""
BYTES = 8
"""Bytes of an index per token."""
INDEXED = (np.dtype("<u2"), np.dtype("<u4"))
"""Types of tokens that can be indexed."""
WIDE = 65537
"""A vocabulary for which tokengrams reads tokens as uint32; up to 65,536 as uint16."""
BUILD = """
import importlib.util, sys, types
package = types.ModuleType("tokengrams")
package.__path__ = importlib.util.find_spec("tokengrams").submodule_search_locations
sys.modules["tokengrams"] = package  # without its __init__, which imports transformers and datasets
from tokengrams.tokengrams import MemmapIndex
tokens, index, vocabulary = sys.argv[1:]
MemmapIndex.build(tokens, index, vocab=int(vocabulary))
"""
"""Program that writes an index."""
SHAPE = {
    "version": int, "tokens": str, "suffixes": str, "tokengrams": str, "files": {...: [int]}, "checksum": str,
}  # fmt: skip
"""Shape of tokens.sa.json."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SuffixArray:
    """The tokens of one file and its index."""

    tokens: NDArray[Any]
    """(n,) uint16 or uint32."""
    suffixes: NDArray[np.uint64]
    """(n,) places in `tokens`, sorted by the tokens from there on."""

    @cached_property
    def _views(self) -> tuple[memoryview, memoryview]:
        """Tokens and suffixes as Python reads them fastest, one value after the other."""
        return np.asarray(self.tokens).data, np.asarray(self.suffixes).data

    def _range(self, window: Sequence[int]) -> tuple[int, int]:
        """The part of `suffixes` that begins with the tokens of `window`."""
        tokens, suffixes = self._views
        size, query = len(window), list(window)

        def key(place: int) -> list[int]:
            return tokens[place : place + size].tolist()

        start = bisect_left(suffixes, query, key=key)
        if start == len(suffixes) or key(suffixes[start]) != query:
            return start, start
        return start, bisect_right(suffixes, query, lo=start, key=key)

    def count(self, window: Sequence[int]) -> int:
        """Number of places of a token sequence, overlapping ones included."""
        start, stop = self._range(window)
        return stop - start

    def places(self, window: Sequence[int]) -> Ints:
        """Index of the first token of each place of a token sequence, ascending."""
        start, stop = self._range(window)
        return np.sort(self.suffixes[start:stop].astype(np.int64))

    def ranges(self, windows: NDArray[Any]) -> tuple[Ints, Ints]:
        """For many windows of one size, (k, size): start and end of each in `suffixes`, (k,).

        numpy makes each step of the binary searches for all windows at once.
        """
        windows = windows.astype(np.int64)
        return self._insert(windows, np.less), self._insert(windows, np.less_equal)

    def _insert(self, windows: Ints, before: np.ufunc) -> Ints:
        """Number of suffixes whose first tokens are before each window."""
        low = np.zeros(len(windows), dtype=np.int64)
        high = np.full(len(windows), len(self.suffixes), dtype=np.int64)
        while (low < high).any():
            middle = (low + high) // 2
            first = self._first_tokens(np.minimum(middle, len(self.suffixes) - 1), windows.shape[1])
            different = np.arange(len(windows)), (first != windows).argmax(axis=1)
            is_before = before(first[different], windows[different])
            low = np.where((low < high) & is_before, middle + 1, low)
            high = np.where((low < high) & ~is_before, middle, high)
        return low

    def _first_tokens(self, numbers: Ints, size: int) -> Ints:
        """The first `size` tokens of some suffixes, (k, size); -1 after the last token of all."""
        places = np.asarray(self.suffixes)[numbers].astype(np.int64)[:, None] + np.arange(size)
        tokens = np.asarray(self.tokens)[np.minimum(places, len(self.tokens) - 1)].astype(np.int64)
        return np.where(places < len(self.tokens), tokens, -1)


@dataclass(frozen=True, eq=False)
class Index:
    """The index of tokens in one or several files, each with a suffix array."""

    shards: tuple[SuffixArray, ...]

    @cached_property
    def starts(self) -> Ints:
        """Index of the first token of each file in all tokens, then the number of tokens."""
        return np.cumsum([0, *(len(shard.tokens) for shard in self.shards)], dtype=np.int64)

    def places(self, window: Sequence[int]) -> Ints:
        """Index of the first token of each place of a token sequence in all tokens, ascending."""
        parts = [start + shard.places(window) for start, shard in zip(self.starts, self.shards, strict=False)]
        return np.sort(np.concatenate([*parts, self._across(np.asarray(window))]))

    def count(self, window: Sequence[int]) -> int:
        """Number of places of a token sequence, overlapping ones included."""
        return sum(shard.count(window) for shard in self.shards) + len(self._across(np.asarray(window)))

    def matches(self, windows: NDArray[Any]) -> tuple[Ints, Ints]:
        """All places of many windows of one size, (k, size): for each match the number of its window, and its place."""
        numbers, places = [], []
        for offset, shard in zip(self.starts.tolist(), self.shards, strict=False):
            start, stop = shard.ranges(windows)
            number = np.repeat(np.arange(len(windows)), stop - start)
            numbers.append(number)
            places.append(offset + np.asarray(shard.suffixes)[consecutive(start, stop - start)].astype(np.int64))
        for i, window in enumerate(windows if len(self.shards) > 1 else ()):
            across = self._across(window)
            numbers.append(np.full(len(across), i))
            places.append(across)
        return np.concatenate(numbers), np.concatenate(places)

    def total(self, windows: NDArray[Any]) -> int:
        """Number of `matches`, without those that begin in one file and end in another."""
        return sum(int((stop - start).sum()) for start, stop in (shard.ranges(windows) for shard in self.shards))

    def contains(self, windows: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether each of many windows of one size, (k, size), occurs; (k,)."""
        present = np.zeros(len(windows), dtype=np.bool_)
        for shard in self.shards:
            start, stop = shard.ranges(windows)
            present |= stop > start
        for i in np.flatnonzero(~present).tolist() if len(self.shards) > 1 else ():
            present[i] = len(self._across(windows[i])) > 0
        return present

    def _across(self, window: NDArray[Any]) -> Ints:
        """Places that begin in one file and end in another, which no suffix array of a single file contains."""
        size, places = len(window), [np.empty(0, dtype=np.int64)]
        for bound in self.starts[1:-1].tolist() if size > 1 else ():
            low, high = max(0, bound - size + 1), min(int(self.starts[-1]), bound + size - 1)
            if high - low >= size:
                windows = np.lib.stride_tricks.sliding_window_view(self._slice(low, high), size)
                places.append(low + np.flatnonzero((windows == window).all(axis=1)))
        return np.unique(np.concatenate(places))  # a window longer than a file crosses two bounds

    def _slice(self, low: int, high: int) -> NDArray[Any]:
        pieces = [
            shard.tokens[max(0, low - start) : max(0, high - start)]
            for start, shard in zip(self.starts.tolist(), self.shards, strict=False)
        ]
        return np.concatenate(pieces)


# --- files -----------------------------------------------------------------------------------------------------------


def index_file(tokens: Path) -> Path:
    """The index of a file of tokens: NAME.sa for NAME.bin; NAME.sa.json describes it."""
    return tokens.with_suffix(".sa")


def description_file(tokens: Path) -> Path:
    """The file that binds an index to its tokens."""
    return tokens.with_suffix(".sa.json")


def problem(tokens: Path, dtype: np.dtype[Any], *, again: bool = False) -> str:
    """Why the index of a file of tokens cannot be used, in a few words; empty if it can.

    Parameters
    ----------
    again : bool
        Whether to hash both files although their sizes and times of change are those of the last time.
    """
    index, description = index_file(tokens), description_file(tokens)
    if not index.is_file() and not description.is_file():
        return MISSING
    try:
        content = read_json(description, SHAPE)
        if content["version"] != 1 or content["checksum"] != checksum(content):
            return "its description is damaged"
        expected = tokens.stat().st_size // dtype.itemsize * BYTES
        if (size := index.stat().st_size) != expected:
            return f"{size:,} bytes long, not {expected:,}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except UserError:
        return "its description is damaged"
    if not again and content["files"] == _times(tokens, index):
        return ""
    if content["tokens"] != sha256_file(tokens):
        return f"an index of other tokens than those of {tokens.name}"
    return "" if content["suffixes"] == sha256_file(index) else "damaged"


def _times(tokens: Path, index: Path) -> dict[str, list[int]]:
    """Size and time of change of both files."""
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in (tokens, index)}


def open_suffixes(tokens: Path, dtype: np.dtype[Any]) -> SuffixArray:
    """Map the index of a file of tokens, for which `problem` is empty."""
    return SuffixArray(np.memmap(tokens, dtype, "r"), np.memmap(index_file(tokens), "<u8", "r"))


def build(tokens: Path, dtype: np.dtype[Any]) -> None:
    """Write the index of a file of tokens, atomically.

    Raises
    ------
    UserError
        Without tokengrams, without tokens, with tokens of another type than uint16 or uint32, without space, or in a
        folder that cannot be written.
    """
    if find_spec(LIBRARY) is None:
        raise UserError(f"index: needs {LIBRARY}, which is not installed; run make setup, or pip install {LIBRARY}")
    if dtype not in INDEXED:
        raise UserError(f"{tokens}: tokens of type {dtype}; only uint16 and uint32 can be indexed")
    size, excess = divmod(tokens.stat().st_size, dtype.itemsize)
    if excess or not size:
        raise UserError(f"{tokens}: {tokens.stat().st_size:,} bytes are not tokens of {dtype.itemsize} bytes")
    index, status = index_file(tokens), os.statvfs(tokens.parent)
    if (free := status.f_bavail * status.f_frsize) < size * BYTES:
        raise UserError(f"{index}: needs {size * BYTES:,} bytes, but only {free:,} are free; make space")
    try:
        _write(tokens, index, size, dtype)
    except OSError as error:
        if error.errno not in NOT_ALLOWED:
            raise
        raise UserError(
            f"{index}: cannot be written ({error.strerror}), and an index is next to its tokens; "
            "make the folder writable, or index a copy of it"
        ) from None


def _write(tokens: Path, index: Path, size: int, dtype: np.dtype[Any]) -> None:
    """Write the index of `size` tokens, and its description."""
    with replacing(index) as file:
        _run(tokens, Path(file.name), 65536 if dtype.itemsize == 2 else WIDE)
        if (written := Path(file.name).stat().st_size) != size * BYTES:
            raise RuntimeError(f"{LIBRARY} wrote {written:,} bytes for {size:,} tokens")
    hashes = {"tokens": sha256_file(tokens), "suffixes": sha256_file(index), LIBRARY: version(LIBRARY)}
    write_json(description_file(tokens), with_checksum({"version": 1, **hashes, "files": _times(tokens, index)}))


def _run(tokens: Path, index: Path, vocabulary: int) -> None:
    command = [sys.executable, "-c", BUILD, str(tokens.absolute()), str(index.absolute()), str(vocabulary)]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if result.returncode:
        raise RuntimeError(f"{LIBRARY} failed with exit code {result.returncode}: {result.stderr[-2000:]}")
