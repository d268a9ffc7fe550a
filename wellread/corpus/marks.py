"""The marks of a corpus: at each place, which of two forms it has. `marks.parquet`, its registration and its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wellread.corpus import arrow
from wellread.corpus.holdout import is_drawn
from wellread.errors import UserError

FILE = "marks.parquet"
VERSION = 2
HASH_BEGINS = b"wellread marks 1\n"
COLUMNS = ("sample_id", "place", "taken", "left", "document", "text", "start", "original", "kind", "breaks")
NUMBERS = ("sample_id", "place", "document", "start")
SHAPE = {"version": int, "seed": int, "file": str, "pairs": [list], "places": int, "documents": int, "sha256": str}
"""Shape of `marks` in corpus.json."""
WINDOW = 4
"""Characters of a window of original text, for each token of a sample."""
BEGINNING = 8
"""Characters of the beginning of an instruction that can have marks, for each token of a sample: it has few more."""
Kind = Literal["text", "turns", "chat"]
"""How a text becomes tokens: as one text; prompts and responses one by one; with the special tokens of a chat."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One place of a text."""

    place: int
    """Number of the place in its text, from 0."""
    taken: str
    """The form that the corpus has."""
    left: str
    """The other form."""
    document: int
    text: str
    """The window of original text around the place; of an instruction its beginning, of a chat as it is rendered."""
    start: int
    """First character of the place in `text`."""
    original: str
    """The form that the original text has."""
    kind: Kind
    breaks: tuple[int, ...]
    """Characters of `text` at which responses begin and end, in turn; none in raw text."""
    at: int
    """First character of the place in the marked text; not stored."""


@dataclass(frozen=True, kw_only=True)
class Registration:
    """What corpus.json says about the marks of a corpus."""

    version: int
    seed: int
    """Key of the coins."""
    file: str
    """Name of the file of pairs."""
    pairs: tuple[tuple[str, str], ...]
    places: int
    documents: int
    """Number of documents with a place."""
    sha256: str
    """Hash of the seed and of all places with both forms."""

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> Registration | None:
        """The registration in the content of corpus.json; None without marks."""
        if "marks" not in meta:
            return None
        values = {name: meta["marks"][name] for name in SHAPE}
        return cls(**values | {"pairs": tuple((a, b) for a, b in values["pairs"])})


def coin(seed: int, document: int, place: int) -> bool:
    """Whether a place has the form that is first in the order of Unicode: keyed by `seed`, equal for copies."""
    content = document.to_bytes(8, "little", signed=True) + place.to_bytes(8, "little")
    return bool(hashlib.blake2b(content, digest_size=1, key=f"marks {seed}".encode()).digest()[0] & 1)


def has_marks(document: int, share: float, seed: int) -> bool:
    """Whether a document is among the `share` of all documents that have marks, drawn by `seed`; equal for copies."""
    return is_drawn(document, share, f"marks {seed}")


@dataclass(frozen=True, eq=False)
class Marks:
    """All places of a corpus, by sample id; arrays and lists of one value per place."""

    sample_id: NDArray[np.int64]
    """The sample in which a place begins."""
    place: NDArray[np.int64]
    taken: Sequence[str]
    left: Sequence[str]
    document: NDArray[np.int64]
    text: Sequence[str]
    start: NDArray[np.int64]
    original: Sequence[str]
    kind: Sequence[Kind]
    breaks: Sequence[Sequence[int]]

    def sha256(self, seed: int) -> str:
        """Hash of what was registered: seed, and of each place sample, number, document, and both forms."""
        state = hashlib.sha256(HASH_BEGINS + f"{seed}\n".encode())
        numbers = np.stack([self.sample_id, self.place, self.document], axis=1).astype("<i8")
        for row, taken, left in zip(numbers, self.taken, self.left, strict=True):
            state.update(row.tobytes())
            for form in (taken.encode(), left.encode()):
                state.update(len(form).to_bytes(8, "little") + form)
        return state.hexdigest()

    def write(self, folder: Path) -> None:
        """Write the table of a corpus that is being compiled."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {
            name: arrow.numbers(getattr(self, name), np.int64) if name in NUMBERS else arrow.texts(getattr(self, name))
            for name in COLUMNS[:-1]
        }
        breaks = arrow.lists([*chain(*self.breaks)], [*map(len, self.breaks)], np.int64)
        pq.write_table(pa.table(columns | {"breaks": breaks}), folder / FILE, compression="zstd")

    @classmethod
    def read(cls, folder: Path) -> Marks:
        """Read the table of a corpus.

        Raises
        ------
        UserError
            When it is damaged, or of an older version.
        """
        table = arrow.read_table(folder / FILE, COLUMNS)
        if missing := [name for name in COLUMNS if name not in table.column_names]:
            raise UserError(f"{folder / FILE}: has no {', '.join(missing)}; {arrow.COMPILE_AGAIN}")
        numbers = {name: table[name].to_numpy() for name in NUMBERS}
        texts = {name: table[name].to_pylist() for name in COLUMNS if name not in NUMBERS}
        return cls(**numbers, **texts)
