"""The canaries of a corpus and their controls: the registered draw, `canaries.parquet` and its hash.

The canaries are the last trainable samples of the corpus, in the order of the table; controls are in no sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus import arrow

FILE = "canaries.parquet"
SET = "canary"
"""Name of the data set of canaries."""
TAG = "canaries/repeats_"
"""Beginning of the tags of their insertions; the number of readings follows."""
VERSION = 1
HASH_BEGINS = b"wellread canaries 1\n"
COLUMNS = ("control", "repeats", "row", "tokens")
SHAPE = {
    "version": int, "seed": int, "text": str, "per_dose": int, "repeats": [int], "controls": int, "at": str,
    "sha256": str,
}  # fmt: skip
"""Shape of `canaries` in corpus.json."""


@dataclass(frozen=True, kw_only=True)
class Registration:
    """What corpus.json says about the canaries of a corpus."""

    version: int
    seed: int
    """Seed of the draw."""
    text: str
    """`random`, or the name of the file that the texts come from."""
    per_dose: int
    repeats: tuple[int, ...]
    """Number of readings of each dose, ascending."""
    controls: int
    at: str
    """uniform, early or late."""
    sha256: str
    """Hash of the draw: seed, all canaries and all controls."""

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> Registration | None:
        """The registration in the content of corpus.json; None without canaries."""
        if "canaries" not in meta:
            return None
        values = {name: meta["canaries"][name] for name in SHAPE}
        return cls(**values | {"repeats": tuple(values["repeats"])})

    def as_dict(self) -> dict[str, Any]:
        """The content of `canaries` in corpus.json."""
        return asdict(self) | {"repeats": list(self.repeats)}

    @property
    def count(self) -> int:
        """Number of canaries."""
        return self.per_dose * len(self.repeats)

    @property
    def doses(self) -> NDArray[np.int64]:
        """Number of planned readings of each canary, int64[count]."""
        return np.repeat(np.array(self.repeats, dtype=np.int64), self.per_dose)


@dataclass(frozen=True, eq=False)
class Texts:
    """Canaries and controls as samples, numbered from 0: canaries by dose, then controls.

    All tokens but the first are targets.
    """

    sequences: Sequence[NDArray[np.uint32]]
    repeats: NDArray[np.int64]
    """Number of planned readings of each text, 0 for controls; int64[texts]."""
    control: NDArray[np.bool_]
    """Whether a text is a control, bool[texts]."""
    rows: NDArray[np.int64]
    """Row of the file of each text, from 1; its number for random tokens. int64[texts]."""

    @property
    def longest(self) -> int:
        """Maximum number of tokens of a text."""
        return max(map(len, self.sequences))

    def tokens(self, number: int) -> NDArray[Any]:
        """Tokens of one text, (length,)."""
        return self.sequences[number]

    def targets(self, number: int) -> NDArray[np.bool_]:
        """Loss mask of one text, (length,)."""
        return np.arange(len(self.sequences[number])) > 0

    def starts(self, number: int) -> NDArray[np.int64]:
        """First token of each segment of one text."""
        return np.zeros(1, dtype=np.int64)

    def lengths(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of tokens of each text."""
        return np.array([len(self.sequences[i]) for i in numbers], dtype=np.int64)

    def sha256(self, seed: int) -> str:
        """Hash of the draw: of each text its kind, repeats and length (little-endian int64), and its uint32 tokens."""
        state = hashlib.sha256(HASH_BEGINS + f"{seed}\n".encode())
        for control, repeats, tokens in zip(self.control.tolist(), self.repeats.tolist(), self.sequences, strict=True):
            state.update(np.array([control, repeats, len(tokens)], dtype="<i8").tobytes())
            state.update(np.ascontiguousarray(tokens, dtype="<u4").tobytes())
        return state.hexdigest()

    def write(self, folder: Path) -> None:
        """Write the table of a corpus that is being compiled."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {
            "control": arrow.flags(self.control),
            "repeats": arrow.numbers(self.repeats, np.int64),
            "row": arrow.numbers(self.rows, np.int64),
            "tokens": arrow.lists(np.concatenate(self.sequences), list(map(len, self.sequences)), np.uint32),
        }
        pq.write_table(pa.table(columns), folder / FILE, compression="zstd")

    @classmethod
    def read(cls, folder: Path) -> Texts:
        """Read the table of a corpus.

        Raises
        ------
        UserError
            When it is damaged.
        """
        table = arrow.read_table(folder / FILE, COLUMNS)
        sequences = [np.array(tokens, dtype=np.uint32) for tokens in table["tokens"].to_pylist()]
        control, repeats, rows = (table[name].to_numpy() for name in COLUMNS[:3])
        return cls(sequences, repeats, control, rows)


def random_texts(seed: int, vocabulary: NDArray[np.uint32], count: int, length: int) -> list[NDArray[np.uint32]]:
    """`count` texts of `length` tokens, each uniform over `vocabulary`, drawn by `seed`."""
    draws = np.random.default_rng((seed, VERSION)).integers(len(vocabulary), size=(count, length))
    return list(vocabulary[draws])
