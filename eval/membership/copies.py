"""Copies: members that are also among the non-members, word for word or nearly.

A non-member whose copy was read is a member in all but name; it makes every score look worse than it is, and a gate
cannot see it. So copies are counted, and results are computed with and without them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHINGLE = 5
"""Words of a shingle."""
SIMILAR = 0.8
"""Smallest Jaccard similarity of the shingles of near copies (Lee et al. 2022)."""
HASHES = 128
COMMON = 0.2
"""A shingle of more than this share of the texts is common: a system message or a template, not a copy."""
FEWEST_COMMON = 10
"""Texts that have a common shingle, at least: of few texts, a share says nothing."""

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
    punctuation; shingles of more than 20% of all texts, at least ten, do not count. Candidates are found by MinHash
    (Broder 1997; datasketch) with banding that finds a pair at this similarity with a probability above 99.9%, and each
    candidate's similarity is then computed exactly.
    """
    exact_members, exact_nonmembers = _among(members, set(nonmembers)), _among(nonmembers, set(members))
    shingles = _without_common([_shingles(text) for text in (*members, *nonmembers)])
    first, second = shingles[: len(members)], shingles[len(members) :]
    near_members, near_nonmembers = np.zeros(len(members), dtype=bool), np.zeros(len(nonmembers), dtype=bool)
    for i, j in _candidates(first, second, seed):
        if len(first[i] & second[j]) >= SIMILAR * len(first[i] | second[j]):
            near_members[i] = near_nonmembers[j] = True
    return Copies(exact_members, near_members & ~exact_members, exact_nonmembers, near_nonmembers & ~exact_nonmembers)


def _among(texts: Sequence[str], pool: set[str]) -> Bools:
    return np.array([text in pool for text in texts], dtype=bool)


def _shingles(text: str) -> frozenset[str]:
    """Runs of 5 words, in lower case and without punctuation; of a shorter text one run, without words none."""
    words = re.findall(r"\w+", text.lower())
    if not words:
        return frozenset()
    return frozenset(" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1)))


def _without_common(texts: Sequence[frozenset[str]]) -> list[frozenset[str]]:
    """The shingles of each text that are not in too many texts."""
    counts = Counter(shingle for shingles in texts for shingle in shingles)
    most = max(COMMON * len(texts), FEWEST_COMMON)
    common = {shingle for shingle, count in counts.items() if count > most}
    return [shingles - common for shingles in texts]


def _candidates(first: Sequence[frozenset[str]], second: Sequence[frozenset[str]], seed: int) -> list[tuple[int, int]]:
    """Pairs (member, non-member) with shingles whose MinHash signatures agree in one of 32 bands of 4 hashes."""
    from datasketch import MinHash, MinHashLSH

    def signatures(sets: Sequence[frozenset[str]]) -> list[MinHash]:
        encoded = [[shingle.encode() for shingle in shingles] for shingles in sets]
        return list(MinHash.bulk(encoded, num_perm=HASHES, seed=seed + 1))

    index = MinHashLSH(num_perm=HASHES, params=(32, 4))
    for j, signature in enumerate(signatures(second)):
        if second[j]:
            index.insert(j, signature, check_duplication=False)
    queried = ((i, signature) for i, signature in enumerate(signatures(first)) if first[i])
    return [(i, int(j)) for i, signature in queried for j in sorted(index.query(signature))]
