"""The prefix of the score `recall`: texts that the model has not read, in front of each sample (Xie et al. 2024).

Texts of the prefix are in no group that is compared: otherwise their own scores would not be those of unread texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval.separation import Ints
from wellread.errors import UserError

if TYPE_CHECKING:
    from eval.groups import Groups
    from wellread.corpus.batch import Samples

SHOTS = 10
"""Most texts of a prefix; fewer where the model reads fewer tokens. The paper has up to 12."""
SHARE = 10
"""At most one in so many of the documents that are not read goes into the prefix."""


def draw_shots(ids: Ints, documents: Ints, keys: Ints) -> tuple[Ints, Ints]:
    """One sample of each of up to `SHOTS` documents; and all samples of these documents, ascending.

    Parameters
    ----------
    ids, documents, keys
        Candidates, their documents and a random number for each, int64[n]; those with the highest keys are drawn.

    Raises
    ------
    UserError
        When there are fewer than 10 documents.
    """
    count = min(SHOTS, len(np.unique(documents)) // SHARE)
    if not count:
        raise UserError(
            f"--scores recall: its prefix needs unread texts that are not compared, but there are fewer than {SHARE} "
            "documents of unread ones; leave it out"
        )
    ordered = np.argsort(-keys, kind="stable")
    firsts = np.sort(np.unique(documents[ordered], return_index=True)[1])[:count]
    shots = ids[ordered[firsts]]
    return shots, np.sort(ids[np.isin(documents, documents[ordered[firsts]])])


def reserve(groups: Groups) -> tuple[Groups, Prefix]:
    """The groups of a run without the sealed documents of a prefix, and the prefix.

    Raises
    ------
    UserError
        When there are too few sealed documents.
    """
    sealed = groups.sealed
    shots, withheld = draw_shots(sealed, groups.documents[sealed], groups.keys[sealed])
    texts = [groups.corpus.tokens(i).astype(np.int64) for i in shots.tolist()]
    return replace(groups, withheld=withheld), Prefix(texts)


@dataclass(frozen=True)
class Prefix:
    """Tokens of candidates for a prefix, in the order of the draw."""

    texts: Sequence[NDArray[np.int64]]

    @property
    def variant(self) -> str:
        """Name of samples with this prefix; models that read equally many tokens use the same part of it."""
        hashed = hashlib.sha256()
        for text in self.texts:
            hashed.update(f"{len(text)}/".encode() + text.astype("<i8").tobytes())
        return f"recall-{hashed.hexdigest()[:16]}"

    def before(self, samples: Samples, longest: int, directory: Path) -> Prefixed:
        """The samples, each after as many of the texts as the model in `directory` can read before `longest` tokens.

        Raises
        ------
        UserError
            When it can read none.
        """
        from wellread.models.continuations import positions
        from wellread.models.load import Source

        limit = positions(Source.of(directory).config)
        texts, space = list[NDArray[np.int64]](), np.inf if limit is None else limit - longest
        for text in self.texts:
            if len(text) <= space:
                texts.append(text)
                space -= len(text)
        if not texts:
            raise UserError(
                f"--scores recall: samples have up to {longest:,} tokens and the model reads {limit:,}, so no "
                "prefix fits; leave it out"
            )
        return Prefixed(samples, np.concatenate(texts), longest)


@dataclass(frozen=True)
class Prefixed:
    """Samples after a prefix, which carries no loss (`wellread.corpus.batch.Samples`)."""

    samples: Samples
    prefix: NDArray[np.int64]
    longest_sample: int

    @property
    def longest(self) -> int:
        """Maximum number of tokens, with the prefix."""
        return self.prefix.size + self.longest_sample

    def tokens(self, sample_id: int, /) -> NDArray[Any]:
        """Tokens of the prefix and of one sample, (length,)."""
        return np.concatenate([self.prefix, self.samples.tokens(sample_id)])

    def targets(self, sample_id: int, /) -> NDArray[np.bool_]:
        """The same targets as without the prefix, (length,)."""
        return np.concatenate([np.zeros(self.prefix.size, dtype=np.bool_), self.samples.targets(sample_id)])

    def starts(self, sample_id: int, /) -> NDArray[np.int64]:
        """Prefix and sample are one segment."""
        return np.zeros(1, dtype=np.int64)

    def lengths(self, sample_ids: NDArray[np.int64], /) -> NDArray[np.int64]:
        """Number of tokens of each sample, with the prefix."""
        return self.prefix.size + self.samples.lengths(sample_ids)
