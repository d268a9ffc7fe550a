"""Tests of marks against redraws of their coins: exact, because without reading the marks a model knows no coin."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.intervals import clustered_mean, clustered_share
from eval.separation import Floats, Ints, codes_of
from eval.statistics import permutation_p

DRAWS = 9999
"""Redraws of the coins."""
AT_ONCE = 500
"""Redraws that are in memory at once."""


@dataclass(frozen=True, eq=False)
class Places:
    """Places of a group, one value for each."""

    difference: Floats
    """log p of the taken form minus that of the left one, nats, float64[n]; NaN where the model has diverged."""
    first: NDArray[np.bool_]
    """Whether the taken form is the first of its pair in the order of Unicode."""
    pair: Ints
    """Number of its pair of forms."""
    coin: Ints
    """Number of its coin: copies of a document share their coins."""
    document: Ints

    def at(self, mask: NDArray[np.bool_]) -> Places:
        """Those of a mask, bool[n]."""
        return Places(*(getattr(self, name)[mask] for name in ("difference", "first", "pair", "coin", "document")))

    @property
    def excess(self) -> Floats:
        """How much more likely the taken form is than the model's preference in its pair says, nats, float64[n].

        The preference is the mean, over all places of the pair, of log p of its first form minus that of its second
        form. No coin changes it.
        """
        sign = np.where(self.first, 1.0, -1.0)
        oriented, pair = sign * self.difference, codes_of(self.pair)
        preference = np.bincount(pair, weights=oriented) / np.bincount(pair)
        return np.asarray(sign * (oriented - preference[pair]))


def redraw_p(excess: Floats, coins: Ints, seed: int, draws: int = DRAWS) -> float:
    """p-value of the sum of `excess` against redraws of all coins.

    Another side of a coin changes the sign of all its places, as their excess is of the first form or of the second.

    Parameters
    ----------
    excess
        Float64[n].
    coins
        Number of the coin of each place, int64[n].
    """
    of_coin = np.bincount(codes_of(coins), weights=excess)
    sums = [2 * (sides @ of_coin) - of_coin.sum() for sides in _sides(of_coin.size, draws, seed)]
    return permutation_p(float(of_coin.sum()), np.concatenate(sums))


def _sides(coins: int, draws: int, seed: int) -> Iterator[Floats]:
    """Sides of coins, 0.0 or 1.0, float64[some, coins], `draws` in total."""
    rng = np.random.default_rng(seed)
    for start in range(0, draws, AT_ONCE):
        yield rng.integers(2, size=(min(AT_ONCE, draws - start), coins), dtype=np.int8).astype(np.float64)


def describe(places: Places, seed: int) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Metric, value and n of a group; places without a score are counted and left out."""
    undefined = ~np.isfinite(places.difference)
    yield "undefined", {"value": float(undefined.sum())}, undefined.size
    places = places.at(~undefined)
    if not places.coin.size:
        return
    excess, n = places.excess, places.coin.size
    yield "p", {"value": redraw_p(excess, places.coin, seed)}, n
    yield "excess", clustered_mean(excess, places.document), n
    yield "taken_likelier", clustered_share((excess > 0).astype(np.float64), places.document), n
