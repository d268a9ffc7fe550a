"""Copies: members that are also among the non-members, word for word or nearly.

A non-member whose copy was read is a member in all but name; it makes every score look worse than it is, and a gate
cannot see it. So copies are counted, and results are computed with and without them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHINGLE = 5
"""Words of a shingle."""
SIMILAR = 0.8
"""Smallest Jaccard similarity of the shingles of near copies (Lee et al. 2022)."""
HASHES = 128

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Copies:
    """Which members have a copy among the non-members, bool[m], and which non-members among the members, bool[n]."""

    exact_members: Bools
    near_members: Bools
    """Only near copies, no exact one."""
    exact_nonmembers: Bools
    near_nonmembers: Bools

    @property
    def members(self) -> Bools:
        """Members with an exact or a near copy, bool[m]."""
        return self.exact_members | self.near_members

    @property
    def nonmembers(self) -> Bools:
        """Non-members with an exact or a near copy, bool[n]."""
        return self.exact_nonmembers | self.near_nonmembers

    def __bool__(self) -> bool:
        return bool(self.members.any())


def copies_between(members: Sequence[str], nonmembers: Sequence[str], *, seed: int = 0) -> Copies:
    """Find the copies between two groups of texts.

    Exact copies are equal texts. Near copies share 80% of their shingles of 5 words, in lower case and without
    punctuation. Candidates are found by MinHash (Broder 1997; datasketch) with banding that finds a pair at this
    similarity with a probability above 99.9%, and each candidate's similarity is then computed exactly.
    """
    exact_members, exact_nonmembers = _among(members, set(nonmembers)), _among(nonmembers, set(members))
    first, second = [_shingles(text) for text in members], [_shingles(text) for text in nonmembers]
    near_members, near_nonmembers = np.zeros(len(members), dtype=bool), np.zeros(len(nonmembers), dtype=bool)
    for i, j in _candidates(first, second, seed):
        if len(first[i] & second[j]) >= SIMILAR * len(first[i] | second[j]):
            near_members[i] = near_nonmembers[j] = True
    return Copies(exact_members, near_members & ~exact_members, exact_nonmembers, near_nonmembers & ~exact_nonmembers)


def _among(texts: Sequence[str], pool: set[str]) -> Bools:
    return np.array([text in pool for text in texts], dtype=bool)


def _shingles(text: str) -> frozenset[str]:
    """Runs of 5 words, in lower case and without punctuation; one shorter run for a shorter text."""
    words = re.findall(r"\w+", text.lower())
    return frozenset(" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1)))


def _candidates(first: Sequence[frozenset[str]], second: Sequence[frozenset[str]], seed: int) -> list[tuple[int, int]]:
    """Pairs (member, non-member) whose MinHash signatures agree in one of 32 bands of 4 hashes."""
    from datasketch import MinHash, MinHashLSH

    def signatures(sets: Sequence[frozenset[str]]) -> list[MinHash]:
        encoded = [[shingle.encode() for shingle in shingles] for shingles in sets]
        return list(MinHash.bulk(encoded, num_perm=HASHES, seed=seed + 1))

    index = MinHashLSH(num_perm=HASHES, params=(32, 4))
    for j, signature in enumerate(signatures(second)):
        index.insert(j, signature, check_duplication=False)
    return [(i, int(j)) for i, signature in enumerate(signatures(first)) for j in sorted(index.query(signature))]
