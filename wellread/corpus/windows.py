"""Split documents into samples: windows over the concatenated documents, or one sample per document.

Each document begins with the beginning-of-sequence token and, as in llama2.c, another one follows its end, so that a
model learns where a document ends. Neighboring windows share one token, as all windows of raw text in this project do:
each token except the first carries loss once. Samples contain no padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wellread.config import LongStories, Packing
from wellread.corpus.shards import Sample, Shard


@dataclass(frozen=True)
class Document:
    """One document, tokenized."""

    row: int
    tokens: NDArray[np.uint32]
    """Token ids, without beginning-of-sequence token."""
    id: int
    """Equal for exact duplicates (`wellread.corpus.holdout.document_id`)."""
    sealed: bool
    category: str = ""


def fill(
    documents: Sequence[Document], *, bos: int, seq_len: int, packing: Packing, long_stories: LongStories = "split"
) -> Shard:
    """Split a range of documents into samples.

    - stream: all trainable documents are concatenated and split into windows of `seq_len`; then all sealed ones. No
      window has documents of both. The last window of each is shorter.
    - story: one sample per document. A document longer than `seq_len` is split into several windows (counted as
      ``story_split``), or truncated (``story_cut``).
    """
    shard = Shard([])
    if packing == "stream":
        for sealed in (False, True):
            shard.samples += _stream([document for document in documents if document.sealed == sealed], bos, seq_len)
        return shard
    for document in documents:
        tokens = _framed(document, bos)
        if len(tokens) > seq_len:
            shard.counts["story_split" if long_stories == "split" else "story_cut"] += 1
            tokens = tokens if long_stories == "split" else tokens[:seq_len]
        shard.samples += [_sample(tokens[start:stop], [document]) for start, stop in _windows(len(tokens), seq_len)]
    return shard


def _framed(document: Document, bos: int) -> NDArray[np.uint32]:
    return np.concatenate([[bos], document.tokens, [bos]]).astype(np.uint32)


def _windows(n: int, seq_len: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + seq_len, n)) for start in range(0, n - 1, seq_len - 1))


def _stream(documents: Sequence[Document], bos: int, seq_len: int) -> Iterable[Sample]:
    if not documents:
        return
    tokens = np.concatenate(
        [*(_framed(document, bos)[:-1] for document in documents), np.array([bos], dtype=np.uint32)]
    )
    ends = np.cumsum([1 + len(document.tokens) for document in documents])
    for start, stop in _windows(len(tokens), seq_len):
        end = stop - 1 - int(tokens[stop - 1] == bos)  # a last token that only begins the next document is not counted
        first, last = np.searchsorted(ends, [start, end], side="right")
        yield _sample(tokens[start:stop], documents[first : last + 1])


def samples_of(
    documents: Sequence[Document],
    positions: Sequence[NDArray[np.int64]],
    *,
    seq_len: int,
    packing: Packing,
    long_stories: LongStories = "split",
) -> list[NDArray[np.int64]]:
    """For tokens of each document, the sample in which the token carries loss.

    Parameters
    ----------
    positions
        Indices of tokens of each document, without its beginning-of-sequence token.

    Returns
    -------
    list of int64[tokens]
        Indices of the samples that `fill` returns for these documents; of a truncated end that of the story.
    """
    places: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64) for _ in documents]
    first = 0
    sides = (False, True) if packing == "stream" else (None,)
    for side in sides:
        before = 0
        for i, document in enumerate(documents):
            if side not in (None, document.sealed):
                continue
            places[i] = first + (before + positions[i]) // (seq_len - 1)
            n_windows = len(range(0, len(document.tokens) + 1, seq_len - 1))
            if side is not None:
                before += 1 + len(document.tokens)
            elif long_stories == "split":
                first += n_windows
            else:
                places[i][:] = first
                first += 1
        if side is not None:
            first += len(range(0, before, seq_len - 1))
    return places


def _sample(tokens: NDArray[np.uint32], documents: Sequence[Document]) -> Sample:
    """A sample of these tokens; its document is the first one."""
    first, *following = documents
    return Sample(
        tokens=tokens,
        spans=[(1, len(tokens))],
        document=first.id,
        sealed=first.sealed,
        set_id=0,
        row=first.row,
        category=first.category,
        further_rows=[document.row for document in following],
    )
