"""The segments of a packed corpus, with the interface of unpacked samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.digest import digest
from wellread.corpus.read import COMPILE_AGAIN, Corpus
from wellread.errors import UserError
from wellread.files import damage_named

if TYPE_CHECKING:
    import pyarrow

FILE = "segments.parquet"


@dataclass(frozen=True)
class Segments:
    """The segments of a packed corpus, numbered from 0; those of trainable samples come first.

    Segments of a packed sample do not attend to each other, so the loss of a segment is the same with and without
    packing. Evaluations can therefore score segments as separate samples.
    """

    corpus: Corpus

    @property
    def path(self) -> Path:
        """Directory of the corpus."""
        return self.corpus.path

    @property
    def hash(self) -> str:
        """Identity of the corpus."""
        return self.corpus.hash

    @property
    def n(self) -> int:
        """Number of segments, including sealed ones."""
        return int(self.corpus.segment_offsets[-1])

    @property
    def n_trainable(self) -> int:
        """Number of segments of trainable samples."""
        return int(self.corpus.segment_offsets[self.corpus.n_trainable])

    @property
    def longest(self) -> int:
        """Maximum number of tokens of a segment."""
        return self.corpus.longest

    def sample_of(self, segments: NDArray[np.int64]) -> NDArray[np.int64]:
        """Id of the sample that contains each segment."""
        return np.asarray(np.searchsorted(self.corpus.segment_offsets, segments, "right") - 1)

    def _place(self, segment: int) -> tuple[int, slice]:
        """Id of the sample that contains a segment, and the range of the segment's tokens in it."""
        if not 0 <= segment < self.n:
            raise UserError(f"segment {segment}: out of range, {self.path.name} has segments 0 … {self.n - 1}")
        sample_id = int(self.sample_of(np.array([segment]))[0])
        first = int(self.corpus.segments[self.corpus.segment_offsets[sample_id]])
        start, stop = self.corpus.segments[segment : segment + 2].tolist()
        return sample_id, slice(start - first, stop - first)

    def tokens(self, segment: int) -> NDArray[Any]:
        """Tokens of one segment, (length,), a view without a copy."""
        sample_id, place = self._place(segment)
        return self.corpus.tokens(sample_id)[place]

    def targets(self, segment: int) -> NDArray[np.bool_]:
        """Loss mask of one segment, (length,)."""
        sample_id, place = self._place(segment)
        return self.corpus.targets(sample_id)[place]

    def starts(self, segment: int) -> NDArray[np.int64]:
        """First token of each segment, as `Corpus.starts`: only 0, since this is one segment."""
        return np.zeros(1, dtype=np.int64)

    def lengths(self, segments: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of tokens of each segment."""
        return np.asarray(self.corpus.segments[segments + 1] - self.corpus.segments[segments])

    def n_targets(self, segments: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of tokens of each segment that carry loss."""
        return np.asarray(self.table["n_targets"].to_numpy()[segments], dtype=np.int64)

    def digest(self, segment: int) -> bytes:
        """Digest of one segment; equal to the digest of its sample without packing."""
        return digest(self.tokens(segment), self.targets(segment))

    @cached_property
    def table(self) -> pyarrow.Table:
        """The table of segments (docs/formats.md)."""
        import pyarrow.parquet

        with damage_named(self.path / FILE, COMPILE_AGAIN):
            return pyarrow.parquet.read_table(self.path / FILE)
