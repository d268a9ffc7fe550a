"""What models are compared on without a run: members, non-members, and how a model reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from eval.membership.checks import Checks
from eval.membership.checks import Samples as Unscored
from eval.membership.files import TextSamples, documents_of
from eval.membership.recall import Prefix, Prefixed, draw_shots
from eval.separation import Ints
from wellread.corpus.batch import Samples

if TYPE_CHECKING:
    from wellread.corpus.tokenizer import Tokenizer

MEMBERS, NONMEMBERS = "members", "nonmembers"


class ModelSamples(Samples, Protocol):
    """Samples as one model reads them, numbered from 0."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""

    @property
    def truncated(self) -> int:
        """Number of samples that are longer than what the model reads."""

    def zlib(self) -> Ints:
        """Bytes of the text of each sample, compressed; (n,)."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Samples on which models are compared, numbered from 0."""

    members: Ints
    nonmembers: Ints
    """Without the documents of the prefix."""
    unlabeled: Ints
    """Further samples that are scored: those to classify."""
    documents: Ints
    """Document of each sample, int64[n]."""
    shots: Ints
    """Samples of the prefix of recall, in its order; none if it is not requested."""
    read: Callable[[Path], ModelSamples]
    """Function from the directory of a model to its samples."""
    checks: Checks

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.documents.size

    @property
    def sides(self) -> tuple[Ints, Ints]:
        """Members and non-members."""
        return self.members, self.nonmembers

    def prefixed(self, samples: ModelSamples, directory: Path) -> tuple[str, Prefixed]:
        """Name of the samples after the prefix of recall, and these samples.

        Raises
        ------
        UserError
            When the model reads too few tokens for a prefix.
        """
        prefix = Prefix([samples.tokens(i).astype(np.int64) for i in self.shots.tolist()])
        longest = int(samples.lengths(np.arange(self.n)).max())
        return prefix.variant, prefix.before(samples, longest, directory)


def without_shots(nonmembers: Ints, documents: Ints, seed: int) -> tuple[Ints, Ints]:
    """Samples of a prefix, and the non-members without their documents; see `draw_shots`.

    Parameters
    ----------
    documents
        Document of each sample, of which `nonmembers` are some.
    """
    keys = np.random.default_rng(seed).integers(2**63, size=nonmembers.size)
    shots, withheld = draw_shots(nonmembers, documents[nonmembers], keys)
    return shots, np.setdiff1d(nonmembers, withheld)


@dataclass(frozen=True)
class Texts:
    """Texts of files: members, non-members, and texts to classify."""

    members: Sequence[str]
    nonmembers: Sequence[str]
    unlabeled: Sequence[str]
    max_tokens: int

    @cached_property
    def _every(self) -> list[str]:
        return [*self.members, *self.nonmembers, *self.unlabeled]

    def compared(self, *, recall: bool, seed: int) -> Compared:
        """All texts, numbered in the order of the files.

        Raises
        ------
        UserError
            When recall is requested, and there are too few non-members.
        """
        texts, first, last = self._every, len(self.members), len(self.members) + len(self.nonmembers)
        documents, lengths = documents_of(texts), np.array([len(text) for text in texts])
        shots, nonmembers = np.zeros(0, np.int64), np.arange(first, last)
        if recall:
            shots, nonmembers = without_shots(nonmembers, documents, seed)
        unscored = Unscored(
            "files", lambda ids: [texts[i] for i in ids.tolist()], lambda ids: lengths[ids], [], documents
        )
        return Compared(
            members=np.arange(first),
            nonmembers=nonmembers,
            unlabeled=np.arange(last, len(texts)),
            documents=documents,
            shots=shots,
            read=self._read,
            checks=Checks(unscored, seed),
        )

    def _read(self, directory: Path) -> TextSamples:
        from wellread.corpus.tokenizer import Tokenizer

        return TextSamples(self._every, Tokenizer.load(directory), positions_of(directory, self.max_tokens))


def positions_of(directory: Path, most: int) -> int:
    """Tokens that the model in a directory reads at once, at most `most`."""
    from wellread.models.continuations import positions
    from wellread.models.pretrained import configuration_in

    return min(most, positions(configuration_in(directory)) or most)
