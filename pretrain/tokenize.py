"""From a chunk of documents to a shard on disk: tokens, holdout, windows, metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.config import LongStories, Packing
from wellread.corpus import holdout
from wellread.corpus.coverage import UNKNOWN
from wellread.corpus.marks import Mark
from wellread.corpus.sentencepiece import Pieces
from wellread.corpus.shards import Shard, write_shard
from wellread.corpus.windows import Document, fill, samples_of
from wellread.data.marks import Marker
from wellread.data.text_metrics import measure

Text = tuple[int, str, str]
"""Row, text and category of a document."""


@dataclass(frozen=True, kw_only=True)
class Tokenizing:
    """Settings for workers; small, because they are sent with each chunk."""

    model: bytes
    """The SentencePiece model."""
    seq_len: int
    packing: Packing
    long_stories: LongStories
    holdout: float
    holdout_seed: int
    metrics: bool
    words: tuple[str, ...] = ()
    """Word list for the metric `word_list_rate`."""
    marker: Marker | None = None


def write(path: Path, chunk: Sequence[Text], settings: Tokenizing) -> None:
    """Write the shard of a chunk of documents."""
    write_shard(path, tokenize(chunk, settings))


def tokenize(chunk: Sequence[Text], settings: Tokenizing) -> Shard:
    """Turn documents into samples; whether a document is sealed is decided before it is cut into windows."""
    pieces = _pieces(settings.model)
    described = list(_documents(chunk, pieces, settings))
    documents = [document for document, _, _ in described]
    how: dict[str, Any] = {
        "seq_len": settings.seq_len,
        "packing": settings.packing,
        "long_stories": settings.long_stories,
    }
    shard = fill(documents, bos=pieces.bos, **how)
    for document, text, _ in described:
        if pieces.unknown is not None and (n := int(np.count_nonzero(document.tokens == pieces.unknown))):
            shard.count(UNKNOWN, f"row {document.row}: {pieces.unknown_text(text)!r}", n)
    if settings.marker:
        positions = [_positions(text, marks, pieces) for _, text, marks in described]
        samples = samples_of(documents, positions, **how)
        for (_, _, marks), places in zip(described, samples, strict=True):
            shard.marks += zip(places.tolist(), marks, strict=True)
    if settings.metrics:
        shard.metrics = measured([np.asarray(sample.tokens) for sample in shard.samples], pieces, settings.words)
    return shard


def measured(samples: Sequence[NDArray[np.uint32]], pieces: Pieces, words: tuple[str, ...]) -> NDArray[np.float32]:
    """Text metrics of samples, (samples, metrics), from their tokens."""
    return measure([text_of(tokens, pieces) for tokens in samples], words=words)


def text_of(tokens: NDArray[np.uint32], pieces: Pieces) -> str:
    """Text of a sample without BOS tokens; its documents are separated by an empty line."""
    parts = np.split(tokens, np.flatnonzero(tokens == pieces.bos))
    return "\n\n".join(filter(None, (pieces.decode(part) for part in parts)))


def _documents(
    chunk: Sequence[Text], pieces: Pieces, settings: Tokenizing
) -> Iterator[tuple[Document, str, list[Mark]]]:
    """Documents, their texts with marks, and the marks. Id and holdout are those of the original text."""
    for row, text, category in chunk:
        name, marks = holdout.document_id(text), list[Mark]()
        if settings.marker:
            (text,), marks = settings.marker.mark([(text, True)], name)
        document = Document(
            row=row,
            tokens=pieces.encode(text),
            id=name,
            sealed=holdout.is_sealed(name, settings.holdout, settings.holdout_seed),
            category=category,
        )
        yield document, text, marks


def _positions(text: str, marks: Sequence[Mark], pieces: Pieces) -> NDArray[np.int64]:
    """Index of the piece in which each mark begins."""
    if not marks:
        return np.zeros(0, dtype=np.int64)
    return np.searchsorted(pieces.starts(text), [mark.at for mark in marks], side="right") - 1


@cache
def _pieces(model: bytes) -> Pieces:
    """The SentencePiece model; cached per process, because it caches the tokens of words."""
    return Pieces(model)
