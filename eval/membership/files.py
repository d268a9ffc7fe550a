"""Texts of files, as samples of a model: for membership of any texts, without a run."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval.separation import Ints
from wellread.errors import UserError

if TYPE_CHECKING:
    from wellread.corpus.tokenizer import Tokenizer

SHOWN = 5
"""Most overlapping texts that an error lists."""


def read_texts(path: Path) -> list[str]:
    """Texts of a JSONL file: a string, or an object with `text`, on each line.

    Raises
    ------
    UserError
        When the file is missing or empty, or a line has no text.
    """
    from wellread.text_io import read_text

    try:
        lines = read_text(path).split("\n")
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist; give a JSONL file with a text on each line") from None
    texts = [_text(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not texts:
        raise UserError(f"{path}: has no texts; give a JSONL file with a text on each line")
    return texts


def _text(path: Path, number: int, line: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"{path}:{number}: not JSON; write a string or an object with text on each line") from None
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{path}:{number}: has no text; write a string or an object with text on each line")
    return text


def refuse_overlap(members: Sequence[str], nonmembers: Sequence[str]) -> None:
    """Refuse texts that are in both files.

    Raises
    ------
    UserError
        Lists the first five.
    """
    pool = set(members)
    if both := [text for text in dict.fromkeys(nonmembers) if text in pool]:
        first = ", ".join(json.dumps(text[:40], ensure_ascii=False) for text in both[:SHOWN])
        raise UserError(f"--members, --nonmembers: {len(both):,} texts are in both ({first}); remove them from one")


def documents_of(texts: Sequence[str]) -> Ints:
    """A number for each text, equal for equal texts; int64[n]."""
    hashes = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.array([int.from_bytes(each, "little", signed=True) for each in hashes], dtype=np.int64)


@dataclass(frozen=True)
class TextSamples:
    """Texts as one model reads them (`wellread.corpus.batch.Samples`): all tokens but the first are targets."""

    texts: Sequence[str]
    tokenizer: Tokenizer
    longest: int
    """Maximum number of tokens: longer texts are truncated."""

    @cached_property
    def _complete(self) -> list[NDArray[np.int64]]:
        return [np.array(ids, dtype=np.int64) for ids in self.tokenizer.prompts(list(self.texts))]

    @cached_property
    def _tokens(self) -> list[NDArray[np.int64]]:
        return [ids[: self.longest] for ids in self._complete]

    @cached_property
    def truncated(self) -> int:
        """Number of texts that are longer than `longest`."""
        return sum(ids.size > self.longest for ids in self._complete)

    def tokens(self, sample_id: int, /) -> NDArray[Any]:
        """Tokens of one text, (length,)."""
        return self._tokens[sample_id]

    def targets(self, sample_id: int, /) -> NDArray[np.bool_]:
        """All but the first token, (length,)."""
        return np.arange(self._tokens[sample_id].size) > 0

    def starts(self, sample_id: int, /) -> NDArray[np.int64]:
        """A text has one segment."""
        return np.zeros(1, dtype=np.int64)

    def lengths(self, sample_ids: NDArray[np.int64], /) -> NDArray[np.int64]:
        """Number of tokens of each text."""
        return np.array([self._tokens[sample_id].size for sample_id in sample_ids.tolist()], dtype=np.int64)

    def zlib(self) -> Ints:
        """Bytes of each text as it is scored, compressed; (n,)."""
        texts = []
        for text, ids in zip(self.texts, self._tokens, strict=True):
            texts.append(text if ids.size < self.longest else self.tokenizer.decode(ids.tolist()))
        return np.array([len(zlib.compress(text.encode())) for text in texts], dtype=np.int64)
