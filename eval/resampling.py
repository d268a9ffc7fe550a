"""Bootstrap and shuffled labels for many scores of the same samples: documents are drawn only once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from eval.separation import Floats, Ints, chunks, codes_of, permuted, ranks, weighted_tpr

KEPT = 1 << 26
"""Most drawn numbers that are kept for the next score (128 MiB); above that, they are drawn again each time."""


@dataclass(frozen=True)
class Resampling:
    """Draws of documents, for members and non-members with these documents, int64[m] and int64[n].

    Samples of one document are not independent, so documents, not samples, are drawn with replacement (cluster
    bootstrap, Davison & Hinkley 1997, section 3.8), separately on both sides. Memory stays near 200 MB for any number
    of draws.
    """

    member_documents: Ints
    nonmember_documents: Ints
    draws: int
    seed: int

    @property
    def has_interval(self) -> bool:
        """Whether both sides have at least two documents."""
        return min(np.unique(side).size for side in (self.member_documents, self.nonmember_documents)) > 1

    def rates(self, members: Floats, nonmembers: Floats, alphas: Sequence[float]) -> dict[float | None, Floats]:
        """AUC (key None), and TPR at FPR <= each alpha, in each draw; float64[draws] each."""
        order, other = np.argsort(members), np.argsort(nonmembers)
        values: dict[float | None, list[Floats]] = {key: [] for key in (None, *alphas)}
        for u, v in self._weights():
            sides = (members[order], u[:, order].astype(float), nonmembers[other], v[:, other].astype(float))
            values[None].append(_weighted_auc(*sides))
            for alpha in alphas:
                values[alpha].append(weighted_tpr(*sides, alpha))
        return {key: np.concatenate(parts) for key, parts in values.items()}

    def shuffled(self, members: Floats, nonmembers: Floats) -> Floats:
        """AUC after each shuffle of the labels among documents: the values that chance gives; float64[draws]."""
        scores = np.concatenate([members, nonmembers])
        below, up_to = ranks(scores, np.sort(scores))
        documents = self._documents
        sizes = np.bincount(documents)
        rank_sums = np.bincount(documents, weights=(below + up_to + 1) / 2)  # mid-ranks, counted from 1
        values = []
        for labels in self._labels():
            m = labels @ sizes.astype(np.float64)
            values.append((labels @ rank_sums - m * (m + 1) / 2) / (m * (scores.size - m)))
        return np.concatenate(values)

    @cached_property
    def _documents(self) -> Ints:
        return codes_of(np.concatenate([self.member_documents, self.nonmember_documents]))

    def _weights(self) -> Iterator[tuple[NDArray[np.uint16], NDArray[np.uint16]]]:
        n = self.member_documents.size + self.nonmember_documents.size
        if self.draws * n > KEPT:
            yield from self._draw_weights()
            return
        yield from self._kept_weights

    @cached_property
    def _kept_weights(self) -> list[tuple[NDArray[np.uint16], NDArray[np.uint16]]]:
        return list(self._draw_weights())

    def _draw_weights(self) -> Iterator[tuple[NDArray[np.uint16], NDArray[np.uint16]]]:
        codes, other_codes = codes_of(self.member_documents), codes_of(self.nonmember_documents)
        rng = np.random.default_rng(self.seed)
        for size in chunks(self.draws, codes.size + other_codes.size):
            u, v = _draw(rng, codes, size), _draw(rng, other_codes, size)
            yield u.astype(np.uint16), v.astype(np.uint16)

    def _labels(self) -> Iterator[Floats]:
        if self.draws * self._documents.size > KEPT // 4:
            yield from self._draw_labels()
            return
        yield from self._kept_labels

    @cached_property
    def _kept_labels(self) -> list[Floats]:
        return list(self._draw_labels())

    def _draw_labels(self) -> Iterator[Floats]:
        count = int(self._documents.max()) + 1
        labels = np.arange(count) < np.unique(self.member_documents).size
        rng = np.random.default_rng(self.seed)
        yield from (part.astype(np.float64) for part in permuted(labels, self.draws, rng))


def _draw(rng: np.random.Generator, codes: Ints, draws: int) -> Floats:
    """How often each sample is drawn when its documents are drawn with replacement; float64[draws, n]."""
    count = int(codes.max()) + 1
    picks = rng.integers(count, size=(draws, count)) + count * np.arange(draws)[:, None]
    times = np.bincount(picks.ravel(), minlength=draws * count).reshape(draws, count)
    return times[:, codes].astype(np.float64)


def _weighted_auc(members: Floats, u: Floats, nonmembers: Floats, v: Floats) -> Floats:
    """`auc` with weights u[draws, m] and v[draws, n]; scores must be ascending."""
    cumulative = np.concatenate([np.zeros((len(v), 1)), v.cumsum(axis=1)], axis=1)
    below, up_to = ranks(members, nonmembers)
    wins = (u * (cumulative[:, below] + cumulative[:, up_to])).sum(axis=1)
    return np.asarray(wins / (2 * u.sum(axis=1) * cumulative[:, -1]))
