"""Which sealed samples are measured next: a keyed, balanced rotation over sealed documents."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.read import Corpus

EARLY_STEPS = tuple(4**i for i in range(1, 16))
"""Steps at which a run measures in any case: a model learns fastest in its first steps, and all it reads before its
first checkpoint is compared with what sealed documents had been then."""
REPEATS = 4
"""How often a run measures each document of the rotation, at least, if it measures that often: what is known of a
document is how its loss changes. Fewer documents would say less about the others."""


def measured_steps(save_steps: Collection[int], steps: int, every: int | None) -> frozenset[int]:
    """Steps at which a run measures: those of checkpoints, early ones, and every `every` steps."""
    early = (step for step in EARLY_STEPS if step < steps)
    return frozenset({*save_steps, *early, *(range(0, steps + 1, every) if every else ())})


class Rotation:
    """An endless sequence of measurements, each of `count` sealed samples of as many documents.

    The documents are drawn by `seed`: all of them, or as many as a run of `measurements` measures `REPEATS` times, so
    that a large holdout does not mean that each document is measured once. They take turns in rounds, each in an order
    of its own, so that documents are not always measured at the same steps as the same others. While the settings stay
    the same, none was measured more than once more often than another. The samples of a document take turns, too, from
    one that `seed` draws: else, all documents would be measured first at their beginnings, which are harder.

    Parameters
    ----------
    count
        Samples per measurement; fewer where fewer documents are sealed.
    measurements
        Number of measurements of the run.
    """

    def __init__(self, corpus: Corpus, seed: int, *, count: int, measurements: int) -> None:
        first = corpus.n_trainable
        documents = corpus.samples(["document"]).column("document").to_numpy()[first:]
        codes = np.unique(documents, return_inverse=True)[1]
        self._members = first + np.argsort(codes, kind="stable")
        self._sizes = np.bincount(codes)
        self._starts = self._sizes.cumsum() - self._sizes
        self.count = min(count, len(self._sizes))
        self._blocks = max(1, min(measurements // REPEATS, len(self._sizes) // max(1, self.count)))
        rng = np.random.default_rng(seed)
        self._documents = rng.permutation(len(self._sizes))[: self.count * self._blocks]
        self._first = rng.integers(self._sizes)
        self._seed = seed

    def take(self, number: int) -> NDArray[np.int64]:
        """The samples of a measurement, numbered from 0, ascending; one per document."""
        turn, block = divmod(number, self._blocks)
        order = np.random.default_rng((self._seed, turn)).permutation(self._documents)
        documents = order[block * self.count : (block + 1) * self.count]
        members = (self._first[documents] + turn) % self._sizes[documents]
        return np.sort(self._members[self._starts[documents] + members])
