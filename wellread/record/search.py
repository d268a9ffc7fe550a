"""Search for text in tokenized samples, without decoding them.

Every token has known bytes, so the text can be searched with an automaton over tokens. State m means "the first m bytes
are matched"; a token leads to state m + its length, to the final state, or nowhere. numpy applies it to millions of
tokens at once, and follows only the few places that pass two table look-ups. An occurrence may begin and end in the
middle of tokens; it never spans two samples, nor two segments of a packed sample.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.columns import consecutive
from wellread.corpus.decoder import Decoder
from wellread.corpus.read import COMPILE_AGAIN, Corpus, SampleReader
from wellread.corpus.segments import Segments
from wellread.corpus.suffixes import Index
from wellread.corpus.token_bytes import check, normalized, token_bytes
from wellread.data.sources.megatron import Megatron
from wellread.errors import UserError
from wellread.files import load_array
from wellread.record.index import Bounds

TOKENS_AT_ONCE = 1 << 21
"""Tokens of one block; keeps buffers below 64 MiB for a corpus of any size."""
WINDOWS_AT_ONCE = 100_000
"""Most token sequences that are looked up in an index at once; a text that can be more of them is scanned."""
PLACES_AT_ONCE = 1 << 22
"""Most places that are taken from an index at once; a text that occurs more often is scanned."""
CHECKED_SAMPLES = 16
"""Number of samples whose decoded bytes are compared with the tokenizer before a search; matches are compared after."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Hit:
    """A sample that contains the text."""

    sample_id: int
    """Number in the searched reader; in `Segments`, the number of a segment."""
    count: int
    """Occurrences, including overlapping ones."""


# --- the automaton ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """The text to find, as tables over tokens. In state m, the first m bytes are matched; in state `length`, all."""

    length: int
    vocabulary: int
    complete: NDArray[np.int64]
    """(vocabulary,) occurrences within the single token."""
    begins: NDArray[np.bool_]
    """(vocabulary,) whether an occurrence can begin in the token and continue in the next."""
    entries: list[tuple[int, NDArray[np.bool_]]]
    """For each state that a first token can lead to: the state, and (vocabulary,) which tokens lead to it."""
    keys: Ints
    """state * vocabulary + token of each pair that has a next state, sorted."""
    states: Ints
    """Next state of each key."""

    def advance(self, states: Ints, tokens: Ints) -> Ints:
        """Next state of each pair, int64, same shape; -1 for none."""
        keys = states * self.vocabulary + tokens
        place = np.minimum(np.searchsorted(self.keys, keys), max(len(self.keys) - 1, 0))
        if not len(self.keys):
            return np.full_like(keys, -1)
        return np.where(self.keys[place] == keys, self.states[place], -1)


def compile_pattern(text: bytes, table: list[bytes]) -> Pattern:
    """Build the tables for one text.

    Parameters
    ----------
    text : bytes
        UTF-8, not empty.
    table
        Bytes of each token.
    """
    size = len(table)
    complete = np.array([_occurrences(text, token) for token in table], dtype=np.int64)
    entries: dict[int, NDArray[np.bool_]] = {}
    for token_id, token in enumerate(table):
        for m in range(1, min(len(token), len(text) - 1) + 1):
            if token.endswith(text[:m]):
                entries.setdefault(m, np.zeros(size, dtype=np.bool_))[token_id] = True
    steps = dict(sorted(_steps(text, table)))
    begins = np.any([*entries.values(), np.zeros(size, dtype=np.bool_)], axis=0)
    return Pattern(
        length=len(text),
        vocabulary=size,
        complete=complete,
        begins=begins,
        entries=sorted(entries.items()),
        keys=np.fromiter(steps.keys(), dtype=np.int64, count=len(steps)),
        states=np.fromiter(steps.values(), dtype=np.int64, count=len(steps)),
    )


def _occurrences(text: bytes, token: bytes) -> int:
    return sum(token.startswith(text, i) for i in range(len(token) - len(text) + 1))


def _steps(text: bytes, table: list[bytes]) -> Iterator[tuple[int, int]]:
    """Yield (state * vocabulary + token, next state) for each pair that has a next state."""
    ids: dict[bytes, list[int]] = defaultdict(list)
    for token_id, token in enumerate(table):
        ids[token].append(token_id)
    ordered = sorted(ids)
    longest = max(map(len, table))
    for m in range(1, len(text)):
        for size in range(min(longest, len(text) - m) + 1):  # size 0: a token without bytes keeps the state
            for token_id in ids.get(text[m : m + size], ()):
                yield m * len(table) + token_id, m + size
        remainder = text[m:]
        for token in itertools.takewhile(lambda t: t.startswith(remainder), ordered[bisect_left(ordered, remainder) :]):  # noqa: B023
            for token_id in ids[token]:
                yield m * len(table) + token_id, len(text)


def occurrences(pattern: Pattern, tokens: NDArray[Any], offsets: Ints) -> Ints:
    """Count the occurrences of the pattern in each of several consecutive samples.

    Parameters
    ----------
    tokens : (length,) integers
    offsets : (samples + 1,) int64
        Start of each sample in `tokens`; the last value is `length`.

    Returns
    -------
    (samples,) int64
    """
    counts = np.zeros(len(offsets) - 1, dtype=np.int64)
    in_token = np.flatnonzero(pattern.complete.take(tokens))
    np.add.at(counts, np.searchsorted(offsets, in_token, "right") - 1, pattern.complete[tokens[in_token]])
    starts = np.flatnonzero(pattern.begins.take(tokens[:-1]))
    first, second = tokens[starts], tokens[starts + 1]
    for state, leads in pattern.entries:
        follows = np.zeros(pattern.vocabulary, dtype=np.bool_)
        low, high = np.searchsorted(pattern.keys, [state * pattern.vocabulary, (state + 1) * pattern.vocabulary])
        follows[pattern.keys[low:high] - state * pattern.vocabulary] = True
        places = starts[leads.take(first) & follows.take(second)]
        samples = np.searchsorted(offsets, places, "right") - 1
        _follow(pattern, tokens, places, samples, offsets[samples + 1], state, counts)
    return counts


def _follow(
    pattern: Pattern, tokens: NDArray[Any], places: Ints, samples: Ints, ends: Ints, state: int, counts: Ints
) -> None:
    """Add to `counts` the candidates that match the full pattern before the end of their sample."""
    states = np.full(len(places), state, dtype=np.int64)
    while len(places):
        places = places + 1
        inside = places < ends
        places, samples, ends, states = places[inside], samples[inside], ends[inside], states[inside]
        states = pattern.advance(states, tokens[places].astype(np.int64))
        np.add.at(counts, samples[states == pattern.length], 1)
        active = (states >= 0) & (states < pattern.length)
        places, samples, ends, states = places[active], samples[active], ends[active], states[active]


# --- the search ------------------------------------------------------------------------------------------------------


def blocks(reader: SampleReader) -> Iterator[tuple[int, NDArray[Any], Ints]]:
    """Yield blocks of complete samples, about TOKENS_AT_ONCE tokens long: first sample id, tokens, offsets from 0."""
    if isinstance(reader, Corpus | Segments):
        yield from _mapped_blocks(reader)
        return
    start, step = 0, 1024
    while start < reader.n:
        stop = min(start + step, reader.n)
        ids = np.arange(start, stop)
        offsets = np.concatenate([[0], np.cumsum(reader.lengths(ids))]).astype(np.int64)
        yield start, np.concatenate([reader.tokens(i) for i in range(start, stop)]), offsets
        start, step = stop, max(1, min(1 << 20, TOKENS_AT_ONCE * (stop - start) // max(1, int(offsets[-1]))))


def _mapped_blocks(reader: Corpus | Segments) -> Iterator[tuple[int, NDArray[Any], Ints]]:
    """Yield blocks that are memory-mapped one after the other, which keeps resident memory constant."""
    corpus, name = (reader.corpus, "segments.npy") if isinstance(reader, Segments) else (reader, "offsets.npy")
    dtype = np.dtype(corpus.meta["dtype"])
    offsets = load_array(corpus.path / name, COMPILE_AGAIN)
    start = 0
    while start < reader.n:
        low = int(offsets[start])
        stop = max(start + 1, int(np.searchsorted(offsets, low + TOKENS_AT_ONCE, "right")) - 1)
        block_offsets = np.array(offsets[start : stop + 1], dtype=np.int64) - low
        shape = (int(block_offsets[-1]),)
        if shape[0]:
            place = low * dtype.itemsize
            yield start, np.memmap(corpus.path / "tokens.bin", dtype, "r", offset=place, shape=shape), block_offsets
        start = stop


def _in_index(pattern: Pattern, index: Index, bounds: Bounds) -> Iterable[Hit] | None:
    """Look up all token sequences that can contain the text, token by token; only those that occur are continued.

    Returns
    -------
    iterable of Hit
        As a scan finds them; None if the text occurs too often, or can be too many sequences, as one that begins and
        ends inside words.
    """
    parts, n_places = [np.empty((2, 0), dtype=np.int64)], 0

    def count(windows: Ints, weights: Ints) -> None:
        nonlocal n_places
        n_places += index.total(windows)
        if n_places > PLACES_AT_ONCE:
            return
        numbers, places = index.matches(windows)
        units = bounds.units(places, windows.shape[1])
        parts.append(np.stack([units[units >= 0], weights[numbers[units >= 0]]]))

    tokens = np.flatnonzero(pattern.complete)
    count(tokens[:, None], pattern.complete[tokens])
    firsts = [(np.flatnonzero(leads), state) for state, leads in pattern.entries]
    windows = np.concatenate([np.empty(0, dtype=np.int64), *(tokens for tokens, _ in firsts)])[:, None]
    states = np.repeat([state for _, state in firsts], [len(tokens) for tokens, _ in firsts]).astype(np.int64)
    while len(windows) and n_places <= PLACES_AT_ONCE:
        low = np.searchsorted(pattern.keys, states * pattern.vocabulary)
        high = np.searchsorted(pattern.keys, (states + 1) * pattern.vocabulary)
        if (high - low).sum() > WINDOWS_AT_ONCE:
            return None
        row = np.repeat(np.arange(len(windows)), high - low)
        key = consecutive(low, high - low)
        windows = np.column_stack([windows[row], pattern.keys[key] % pattern.vocabulary])
        states = pattern.states[key]
        complete = states == pattern.length
        count(windows[complete], np.ones(int(complete.sum()), dtype=np.int64))
        windows, states = windows[~complete], states[~complete]
        occurs = index.contains(windows)
        windows, states = windows[occurs], states[occurs]
    return None if n_places > PLACES_AT_ONCE else _summed(*np.concatenate(parts, axis=1))


def _summed(units: Ints, counts: Ints) -> Iterator[Hit]:
    """The counts of each unit together; a data set has too many units for an array of all."""
    unique, places = np.unique(units, return_inverse=True)
    sums = np.zeros(len(unique), dtype=np.int64)
    np.add.at(sums, places, counts)
    return itertools.starmap(Hit, zip(unique.tolist(), sums.tolist(), strict=True))


def _hits(counts: Ints, start: int = 0) -> Iterator[Hit]:
    return (Hit(start + i, int(counts[i])) for i in np.flatnonzero(counts).tolist())


def search(
    reader: SampleReader,
    tokenizer: Decoder,
    text: str,
    *,
    index: Index | None = None,
    most: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Hit]:
    """Find the samples of `reader` that contain `text`, byte for byte, in ascending order.

    Parameters
    ----------
    most : int, optional
        The search ends after this many samples.
    index : Index, optional
        The index of a corpus or a Megatron data set; the samples are the same as those of a scan.
    progress : callable, optional
        Called with the number of samples searched so far.

    Raises
    ------
    UserError
        When the text is empty, or the bytes of the tokenizer's tokens are unknown.
    """
    if not text:
        raise UserError("--text: empty; give the text to search for")
    table = token_bytes(tokenizer)
    for sample_id in np.unique(np.linspace(0, reader.n - 1, CHECKED_SAMPLES).astype(np.int64)).tolist():
        check(table, tokenizer, reader, sample_id)
    pattern = compile_pattern(normalized(text, tokenizer).encode(), table)
    stream = None
    if index is not None and isinstance(reader, Corpus | Segments | Megatron):
        bounds = Bounds.of(reader.corpus if isinstance(reader, Segments) else reader)
        stream = None if bounds.overlap else _in_index(pattern, index, bounds)
    hits = list(itertools.islice(_scan(reader, pattern, progress) if stream is None else stream, most))
    for hit in hits:
        check(table, tokenizer, reader, hit.sample_id)
    return hits


def _scan(reader: SampleReader, pattern: Pattern, progress: Callable[[int], None] | None) -> Iterator[Hit]:
    for start, tokens, offsets in blocks(reader):
        _check_ids(tokens, pattern, start)
        counts = occurrences(pattern, tokens, offsets)
        yield from _hits(counts, start)
        if progress:
            progress(start + len(offsets) - 1)


def _check_ids(tokens: NDArray[Any], pattern: Pattern, start: int) -> None:
    if len(tokens) and int(tokens.max()) >= pattern.vocabulary:
        raise UserError(
            f"--text: samples from {start} on contain token {tokens.max()}, but the tokenizer has only tokens "
            f"0 … {pattern.vocabulary - 1}; give the tokenizer that the corpus was compiled with"
        )
