"""Copies of a sequence of tokens in samples: from the index if there is one, otherwise by a scan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.read import Corpus, SampleReader
from wellread.corpus.segments import Segments
from wellread.corpus.suffixes import Index
from wellread.data.sources.megatron import Megatron
from wellread.record.index import MOST_PLACES, SCANNED, Bounds, Ints
from wellread.record.search import blocks

SAMPLES_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Copies:
    """How often samples contain a sequence of tokens; copies may overlap, none crosses the bound of a sample."""

    tokens: int
    """Length of the sequence."""
    trainable: int
    """Copies in trainable samples."""
    sealed: int
    """Copies in sealed samples."""

    @property
    def total(self) -> int:
        """Copies in all samples."""
        return self.trainable + self.sealed


def copies(units: SampleReader, window: NDArray[Any], index: Index | None) -> Copies | None:
    """Count the copies of a token window, (length,), in samples, or in the segments of a packed corpus.

    Parameters
    ----------
    index : Index, optional
        The index of a corpus or a Megatron data set; the numbers are the same as those of a scan.

    Returns
    -------
    Copies
        None if counting would take too long: there is no index, and the samples have more than `SCANNED` tokens.
    """
    numbers = None if index is None else _in_index(units, window, index)
    if numbers is None:
        if not _is_short(units):
            return None
        numbers = np.concatenate([np.empty(0, dtype=np.int64), *_scanned(units, window)])
    trainable = int((numbers < units.n_trainable).sum())
    return Copies(len(window), trainable, len(numbers) - trainable)


def _in_index(units: SampleReader, window: NDArray[Any], index: Index) -> Ints | None:
    """Number of the sample of each copy; None if it has too many places, or the samples have no bounds in the index."""
    if not isinstance(units, Corpus | Segments | Megatron) or index.count(window.tolist()) > MOST_PLACES:
        return None
    bounds = Bounds.of(units.corpus if isinstance(units, Segments) else units)
    if bounds.overlap:
        return None
    numbers = bounds.units(index.places(window.tolist()), len(window))
    return np.asarray(numbers[numbers >= 0])


def _is_short(units: SampleReader) -> bool:
    n_tokens = 0
    for start in range(0, units.n, SAMPLES_AT_ONCE):
        n_tokens += int(units.lengths(np.arange(start, min(units.n, start + SAMPLES_AT_ONCE))).sum())
        if n_tokens > SCANNED:
            return False
    return True


def _scanned(units: SampleReader, window: NDArray[Any]) -> Iterator[Ints]:
    """Number of the sample of each copy, block by block."""
    for start, tokens, offsets in blocks(units):
        places = np.arange(max(0, len(tokens) - len(window) + 1))
        for j, token in enumerate(window.tolist()):
            places = places[tokens[places + j] == token]
        samples = np.searchsorted(offsets, places, "right") - 1
        yield start + samples[places + len(window) <= offsets[samples + 1]]
