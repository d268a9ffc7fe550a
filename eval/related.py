"""Which samples share text: samples of one document, and windows of a stream that share a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eval.separation import Ints, codes_of
from wellread.corpus.read import Corpus


@dataclass(frozen=True)
class Related:
    """Samples 0 … n - 1 and what each consists of: its document, and each of its rows if it is a window of several.

    The `document` of a window is only the first of its documents.
    """

    n: int
    owner: Ints
    """Sample of each pair, int64[pairs]."""
    key: Ints
    """Document or row of each pair, numbered from 0; int64[pairs]."""

    @classmethod
    def of(cls, corpus: object, documents: Ints) -> Related:
        """The first samples of a corpus, which have these documents, int64[n]; segments have one row each."""
        n, owner, key = documents.size, np.arange(documents.size), codes_of(documents)
        if not isinstance(corpus, Corpus) or corpus.packed:
            return cls(n, owner, key)
        lists = corpus.samples(["rows"]).column("rows").slice(0, n).combine_chunks()
        sizes = lists.value_lengths().to_numpy()
        if sizes.max(initial=0) < 2:
            return cls(n, owner, key)
        row = lists.flatten().to_numpy()
        of = np.repeat(owner, sizes)
        codes = codes_of(corpus.sets(of).astype(np.int64) * (int(row.max()) + 1) + row)
        return cls(n, np.concatenate([owner, of]), np.concatenate([key, key.max() + 1 + codes]))

    def earliest(self, first_read: Ints) -> Ints:
        """The first reading of a sample or of any that shares text with it, from the first one of each; int64[n]."""
        never = int(first_read.max(initial=0))
        first = np.full(int(self.key.max(initial=-1)) + 1, never)
        np.minimum.at(first, self.key, first_read[self.owner])
        earliest = np.full(self.n, never)
        np.minimum.at(earliest, self.owner, first[self.key])
        return earliest
