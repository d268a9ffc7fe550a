"""Text metrics of the samples of a compiled corpus, measured on their decoded text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wellread.corpus.building import only_builder
from wellread.corpus.read import Corpus
from wellread.data import text_metrics
from wellread.terminal import progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wellread.corpus.tokenizer import Tokenizer

AT_ONCE = 1024
"""Samples that are decoded at once."""


def add(directory: Path) -> bool:
    """Add text metrics to a compiled corpus, unless it has them; return whether they were added.

    Neither the key of the corpus nor its hash changes. One process adds them, others wait.
    """
    from wellread.corpus.tables import add_metrics

    with only_builder(directory):
        corpus = Corpus.open(directory)
        if has(corpus):
            return False
        with progress("measuring texts", corpus.n) as show:
            values = measure(corpus, np.arange(corpus.n), show)
        add_metrics(directory, dict(zip(text_metrics.NAMES, values.T, strict=True)))
    return True


def has(corpus: Corpus) -> bool:
    """Whether a corpus has text metrics; it may have only scores of another program (`wellread.data.influence`)."""
    return {*text_metrics.NAMES} <= {*corpus.metrics}


def measure(
    corpus: Corpus, ids: NDArray[np.int64], show: Callable[[int], None] = lambda number: None
) -> NDArray[np.float32]:
    """Text metrics of samples.

    Parameters
    ----------
    ids : (n,) sample ids
    show : callable, optional
        Called with the number of samples that are finished.

    Returns
    -------
    (n, 7) float32
        Columns as in `text_metrics.NAMES`.
    """
    from wellread.corpus.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(corpus.tokenizer)
    special = np.array(sorted(tokenizer.special_ids))
    values = np.zeros((len(ids), len(text_metrics.NAMES)), dtype=np.float32)
    for start in range(0, len(ids), AT_ONCE):
        part = ids[start : start + AT_ONCE].tolist()
        values[start : start + AT_ONCE] = text_metrics.measure(
            [text_of(corpus.tokens(i), corpus.starts(i), special, tokenizer) for i in part]
        )
        show(min(start + AT_ONCE, len(ids)))
    return values


def text_of(tokens: NDArray[Any], starts: NDArray[np.int64], special: NDArray[np.int64], tokenizer: Tokenizer) -> str:
    """Text of a sample without special tokens; the parts that they separate, and segments, are paragraphs.

    Parameters
    ----------
    tokens : (length,) token ids
    starts : (segments,) places at which the segments of a packed sample begin
    special : ids of special tokens
    """
    is_special = np.isin(tokens, special)
    cuts = np.unique(np.concatenate([starts, np.flatnonzero(is_special), np.flatnonzero(is_special) + 1]))
    pieces = np.split(np.arange(len(tokens)), cuts[(cuts > 0) & (cuts < len(tokens))])
    texts = (tokenizer.decode(tokens[piece].tolist()) for piece in pieces if piece.size and not is_special[piece[0]])
    return "\n\n".join(filter(None, texts))
