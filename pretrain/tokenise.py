"""One stretch of stories, from text to a shard on disk: tokens, side of the seal, windows, metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wellread.config import LongStories, Packing
from wellread.corpus import holdout
from wellread.corpus.compile import Shard, write_shard
from wellread.corpus.sentencepiece import Pieces
from wellread.corpus.windows import Story, pack
from wellread.data.text_metrics import measure

Text = tuple[int, str, str]
"""Row, text and category of a story."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
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


def write(path: Path, stretch: Sequence[Text], recipe: Recipe) -> None:
    """Write the shard of a stretch of stories."""
    write_shard(path, tokenise(stretch, recipe))


def tokenise(stretch: Sequence[Text], recipe: Recipe) -> Shard:
    """Turn stories into samples; each story's side of the seal is drawn before anything is cut."""
    pieces = _pieces(recipe.model)
    shard = pack(
        list(_stories(stretch, pieces, recipe)),
        bos=pieces.bos,
        seq_len=recipe.seq_len,
        packing=recipe.packing,
        long_stories=recipe.long_stories,
    )
    if recipe.metrics:
        texts = [text_of(np.asarray(sample.tokens), pieces) for sample in shard.samples]
        shard.metrics = measure(texts, words=recipe.words)
    return shard


def text_of(tokens: NDArray[np.uint32], pieces: Pieces) -> str:
    """Text of a sample, its stories apart by a blank line; without beginning-of-sequence tokens."""
    parts = np.split(tokens, np.flatnonzero(tokens == pieces.bos))
    return "\n\n".join(filter(None, (pieces.decode(part) for part in parts)))


def _stories(stretch: Sequence[Text], pieces: Pieces, recipe: Recipe) -> Iterator[Story]:
    for row, text, category in stretch:
        document = holdout.document_id(text)
        yield Story(
            row=row,
            tokens=pieces.encode(text),
            document=document,
            sealed=holdout.is_sealed(document, recipe.holdout, recipe.holdout_seed),
            category=category,
        )


@cache
def _pieces(model: bytes) -> Pieces:
    """The model with its memory of words, which lasts as long as the worker."""
    return Pieces(model)
