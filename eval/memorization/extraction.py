"""Extraction of suffixes from teacher-forced token columns: exact, and without generating.

Greedy decoding from the true prefix returns the true suffix exactly if each true token has rank 0 after the true tokens
before it (k-extractible, Carlini et al. 2023). With temperature 1 and the 40 most likely tokens, the suffix is drawn
with probability q = product of p_i / (mass of the 40), or 0 if a token is not among them; n tries return it at least
once with probability 1 - (1 - q)^n ((n, p)-discoverable if that is at least p, Hayes et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.intervals import LEVEL
from eval.separation import Floats, Ints
from wellread.tokens import Tokens

TOP = 40
"""Most likely tokens that are drawn from."""


@dataclass(frozen=True, eq=False)
class Suffixes:
    """What token columns say about one suffix of each sample."""

    sample_id: Ints
    matched: Floats
    """Share of tokens with rank 0, float64[samples]; 1: extractible. NaN where the model has diverged."""
    log_q: Floats
    """Log of the probability to draw the suffix, nats, float64[samples]; -inf: cannot be drawn."""

    @classmethod
    def of(cls, tokens: Tokens, skip: int, size: int) -> Suffixes:
        """The suffix of `size` target tokens after the first `skip` of each sample; all must have as many.

        Raises
        ------
        ValueError
            When a sample is too short.
        """
        if (tokens.n_targets < skip + size).any():
            raise ValueError(f"a sample has fewer than {skip} + {size} target tokens")
        places = (tokens.bounds[:-1] + skip)[:, None] + np.arange(size)
        rank, logp, top = (np.asarray(column)[places] for column in (tokens.rank, tokens.logp, tokens.top40))
        terms = np.where(rank < TOP, logp.astype(np.float64) - top, -np.inf)
        defined = np.isfinite(logp).all(axis=1) & np.isfinite(top).all(axis=1)
        matched = np.where(defined, (rank == 0).mean(axis=1), np.nan)
        log_q = np.where(defined, np.minimum(terms.sum(axis=1), 0.0), np.nan)  # rounding can give more than 1
        return cls(tokens.sample_id, matched, log_q)

    @classmethod
    def joined(cls, parts: Sequence[Suffixes]) -> Suffixes:
        """The samples of all parts, by id."""
        order = np.argsort(np.concatenate([part.sample_id for part in parts]))
        columns = {name: [getattr(part, name) for part in parts] for name in ("sample_id", "matched", "log_q")}
        return cls(**{name: np.concatenate(column)[order] for name, column in columns.items()})

    def at(self, ids: Ints) -> Suffixes:
        """Those of `ids`, which are all here, without those that are not defined."""
        places = np.searchsorted(self.sample_id, ids)
        places = places[np.isfinite(self.matched[places])]
        return Suffixes(self.sample_id[places], self.matched[places], self.log_q[places])

    @property
    def extractible(self) -> Floats:
        """1.0 where greedy decoding returns the suffix, else 0.0."""
        return np.asarray(self.matched == 1, dtype=np.float64)

    def chance(self, tries: int) -> Floats:
        """Probability that at least one of `tries` draws is the suffix: 1 - (1 - q)^tries, float64[samples]."""
        with np.errstate(divide="ignore"):  # q = 1
            return np.asarray(-np.expm1(tries * np.log1p(-np.exp(self.log_q))))


def documents_needed(rate: float) -> int:
    """Fewest documents without any extracted sample that show a rate of at most `rate`, which is between 0 and 1."""
    return math.ceil(math.log(LEVEL) / math.log1p(-rate))
