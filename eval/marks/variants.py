"""The two forms of each place as texts that a model scores: all other places of the window have their original form."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.marks.statistics import Places
from eval.separation import Ints, codes_of
from wellread.corpus.marks import Marks
from wellread.corpus.tokenizer import Tokenizer
from wellread.errors import UserError

AFTER = 100
"""Characters after a place that are scored with it, up to the end of its response."""


@dataclass(frozen=True, eq=False)
class Variants:
    """Texts around places (`wellread.corpus.batch.Samples`).

    Text 2 i has the taken form of row i of the table, text 2 i + 1 the left one. Targets are the
    tokens from the first one in which the two texts differ.
    """

    longest: int
    """Maximum number of tokens."""
    sequences: dict[int, NDArray[np.int64]]
    first_target: dict[int, int]

    @classmethod
    def of(cls, marks: Marks, rows: Ints, tokenizer: Tokenizer, longest: int) -> Variants:
        """The texts of these rows of the table, with the tokens of a model."""
        encoded = [tokens for row in rows.tolist() for tokens in _encoded(marks, row, tokenizer)]
        sequences, first_target = dict[int, NDArray[np.int64]](), dict[int, int]()
        for row, one, other in zip(rows.tolist(), encoded[::2], encoded[1::2], strict=True):
            common = _common(one, other)
            start = min(max(0, max(len(one), len(other)) - longest), max(0, common - 1))
            for k, tokens in enumerate((one, other)):
                sequences[2 * row + k] = np.array(tokens[start : start + longest], dtype=np.int64)
                last = len(sequences[2 * row + k]) - 1
                first_target[2 * row + k] = max(1, min(common - start, last))
        return cls(longest, sequences, first_target)

    @property
    def ids(self) -> Ints:
        """Numbers of the texts, ascending."""
        return np.array(sorted(self.sequences), dtype=np.int64)

    def tokens(self, sample_id: int, /) -> NDArray[Any]:
        """Tokens of one text, (length,)."""
        return self.sequences[sample_id]

    def targets(self, sample_id: int, /) -> NDArray[np.bool_]:
        """Whether a token is scored, (length,)."""
        return np.arange(self.sequences[sample_id].size) >= self.first_target[sample_id]

    def starts(self, sample_id: int, /) -> NDArray[np.int64]:
        """A text has one segment."""
        return np.zeros(1, dtype=np.int64)

    def lengths(self, sample_ids: NDArray[np.int64], /) -> NDArray[np.int64]:
        """Number of tokens of each text."""
        return np.array([self.sequences[i].size for i in sample_ids.tolist()], dtype=np.int64)


def texts_of(rows: Ints) -> Ints:
    """Numbers of the two texts of each row, one after the other, int64[2 n]."""
    return np.stack([2 * rows, 2 * rows + 1], axis=1).reshape(-1)


def _encoded(marks: Marks, row: int, tokenizer: Tokenizer) -> list[list[int]]:
    """Tokens of the window up to `AFTER` characters after a place, with the taken and with the left form.

    A text becomes tokens as in training, so prompts and responses one by one, or with the special tokens of a chat.
    """
    text, start, breaks = marks.text[row], int(marks.start[row]), [*marks.breaks[row]]
    place = bisect_right(breaks, start)
    stop = start + len(marks.original[row])
    end = min([stop + AFTER, *breaks[place : place + 1]])
    parts = [text[a:b] for a, b in pairwise([0, *breaks[:place], start])]
    forms = [[*parts[:-1], parts[-1] + form + text[stop:end]] for form in (marks.taken[row], marks.left[row])]
    if marks.kind[row] == "turns":
        return [_turns(form, tokenizer) for form in forms]
    texts = ["".join(form) for form in forms]
    return [tokenizer.rendered(each)[0] for each in texts] if marks.kind[row] == "chat" else tokenizer.prompts(texts)


def _turns(parts: Sequence[str], tokenizer: Tokenizer) -> list[int]:
    """Tokens of prompts and responses in turn; each response but the last one, of which this is the beginning, ends."""
    (first,), continued = tokenizer.prompts([parts[0]]), tokenizer.continuations([*parts[1:]])
    ends = [[tokenizer.eos] if i % 2 == 0 and part else [] for i, part in enumerate(parts[1:-1])]
    return [*first, *chain.from_iterable([*tokens, *end] for tokens, end in zip(continued, [*ends, []], strict=True))]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of equal tokens at the beginning."""
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return min(len(one), len(other))


def places_of(marks: Marks, rows: Ints, log_likelihood: NDArray[np.float64]) -> Places:
    """Rows of the table with the log-likelihoods of both texts of each, float64[2 n]."""
    ones, alternatives = ([forms[i] for i in rows.tolist()] for forms in (marks.taken, marks.left))
    pairs = {
        pair: i for i, pair in enumerate(sorted({tuple(sorted(each)) for each in zip(ones, alternatives, strict=True)}))
    }
    keys = np.stack([marks.document[rows], marks.place[rows]], axis=1)
    return Places(
        difference=np.asarray(log_likelihood[::2] - log_likelihood[1::2]),
        first=np.array([a < b for a, b in zip(ones, alternatives, strict=True)], dtype=np.bool_),
        pair=np.array([pairs[tuple(sorted(each))] for each in zip(ones, alternatives, strict=True)], dtype=np.int64),
        coin=np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64),
        document=codes_of(marks.document[rows]),
    )


def registered(path: Path, seed: int, sha256: str) -> Marks:
    """The marks of a corpus.

    Raises
    ------
    UserError
        When they are not the registered ones.
    """
    marks = Marks.read(path)
    if marks.sha256(seed) != sha256:
        raise UserError(f"{path / 'marks.parquet'}: not the registered marks; run wellread verify")
    return marks
