"""Which sealed samples are measured next: a keyed, balanced rotation over the sealed documents."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.read import Corpus


class Rotation:
    """An endless sequence of sealed samples, of which each measurement takes the next ones.

    The sealed documents take turns in an order drawn by `seed`, so at any time none was measured more than once more
    often than another, and no measurement has two samples of a document. The samples of a document take turns, too,
    from one that `seed` draws: else, all documents would be measured first at their beginnings, which are harder. The
    sequence depends on nothing but corpus and seed: the number of values measured so far is its only state.
    """

    def __init__(self, corpus: Corpus, seed: int) -> None:
        first = corpus.n_trainable
        documents = corpus.samples(["document"]).column("document").to_numpy()[first:]
        codes = np.unique(documents, return_inverse=True)[1]
        self._members = first + np.argsort(codes, kind="stable")
        self._sizes = np.bincount(codes)
        self._starts = self._sizes.cumsum() - self._sizes
        rng = np.random.default_rng(seed)
        self._turns = rng.permutation(len(self._sizes))
        self._first = rng.integers(self._sizes)

    @property
    def documents(self) -> int:
        """Number of sealed documents."""
        return len(self._turns)

    def take(self, start: int, count: int) -> NDArray[np.int64]:
        """The samples at places ``start … start + count - 1`` of the sequence, ascending; at most one per document."""
        count = min(count, self.documents)
        if not count:
            return np.zeros(0, np.int64)
        rounds, places = np.divmod(start + np.arange(count), self.documents)
        numbers = self._turns[places]
        members = (self._first[numbers] + rounds) % self._sizes[numbers]
        return np.sort(self._members[self._starts[numbers] + members])
