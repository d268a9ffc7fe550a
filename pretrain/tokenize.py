"""One stretch of documents, from text to a shard on disk: tokens, side of the seal, windows, metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wellread.config import LongStories, Packing
from wellread.corpus import holdout
from wellread.corpus.sentencepiece import Pieces
from wellread.corpus.shards import Shard, write_shard
from wellread.corpus.windows import Document, fill
from wellread.data.text_metrics import measure

Text = tuple[int, str, str]
"""Row, text and category of a document."""


@dataclass(frozen=True, kw_only=True)
class Tokenizing:
    """What a worker needs to know; small, so that it travels with each stretch."""

    model: bytes
    """The SentencePiece model."""
    seq_len: int
    packing: Packing
    long_stories: LongStories
    holdout: float
    holdout_seed: int
    metrics: bool
    words: tuple[str, ...] = ()
    """List of words whose rate is a metric."""


def write(path: Path, stretch: Sequence[Text], how: Tokenizing) -> None:
    """Write the shard of a stretch of documents."""
    write_shard(path, tokenize(stretch, how))


def tokenize(stretch: Sequence[Text], how: Tokenizing) -> Shard:
    """Turn documents into samples; each document's side of the seal is drawn before anything is cut."""
    pieces = _pieces(how.model)
    shard = fill(
        list(_documents(stretch, pieces, how)),
        bos=pieces.bos,
        seq_len=how.seq_len,
        packing=how.packing,
        long_stories=how.long_stories,
    )
    if how.metrics:
        texts = [text_of(np.asarray(sample.tokens), pieces) for sample in shard.samples]
        shard.metrics = measure(texts, words=how.words)
    return shard


def text_of(tokens: NDArray[np.uint32], pieces: Pieces) -> str:
    """Text of a sample, its documents apart by a blank line; without beginning-of-sequence tokens."""
    parts = np.split(tokens, np.flatnonzero(tokens == pieces.bos))
    return "\n\n".join(filter(None, (pieces.decode(part) for part in parts)))


def _documents(stretch: Sequence[Text], pieces: Pieces, how: Tokenizing) -> Iterator[Document]:
    for row, text, category in stretch:
        name = holdout.document_id(text)
        yield Document(
            row=row,
            tokens=pieces.encode(text),
            id=name,
            sealed=holdout.is_sealed(name, how.holdout, how.holdout_seed),
            category=category,
        )


@cache
def _pieces(model: bytes) -> Pieces:
    """The model with its memory of words, which lasts as long as the worker."""
    return Pieces(model)
