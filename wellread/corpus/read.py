"""The corpus: tokenized samples on disk, memory-mapped, immutable, identified by a hash."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.digest import digest
from wellread.errors import UserError
from wellread.files import read_json

if TYPE_CHECKING:
    import pyarrow

METRICS = "metrics.parquet"


class SampleReader(Protocol):
    """What the loop and the evaluations ask of samples, wherever their tokens come from."""

    @property
    def path(self) -> Path:
        """Where it lies."""

    @property
    def hash(self) -> str:
        """Identity of what is read."""

    @property
    def n(self) -> int:
        """Number of samples."""

    @property
    def n_trainable(self) -> int:
        """Number of trainable samples; they come first, sealed ones after them."""

    def tokens(self, sample_id: int) -> NDArray[Any]:
        """Tokens of one sample, (length,)."""

    def targets(self, sample_id: int) -> NDArray[np.bool_]:
        """Loss mask of one sample, (length,)."""

    def lengths(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of tokens of each sample."""

    def n_targets(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of tokens of each sample that carry loss."""

    def digest(self, sample_id: int) -> bytes:
        """Digest of one sample."""


@dataclass(frozen=True)
class Corpus:
    """A compiled corpus. Samples 0 … n_trainable-1 may be trained on; those after them are sealed."""

    path: Path
    meta: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Corpus:
        """Open a compiled corpus.

        Raises
        ------
        UserError
            When `path` holds none, or one that is incomplete.
        """
        path = Path(path).resolve()
        try:
            meta = read_json(path / "corpus.json")
        except FileNotFoundError:
            raise UserError(f"{path}: no corpus there (corpus.json is missing); compile it again") from None
        for name, size in meta["sizes"].items():
            if not (path / name).is_file() or (path / name).stat().st_size != size:
                raise UserError(f"{path / name}: missing or not {size:,} bytes long; delete {path} and compile again")
        return cls(path, meta)

    @property
    def hash(self) -> str:
        """Identity: hash over every sample's digest, document and side of the seal."""
        return str(self.meta["hash"])

    @property
    def n(self) -> int:
        """Number of samples, sealed ones included."""
        return int(self.meta["counts"]["samples"])

    @property
    def n_trainable(self) -> int:
        """Number of trainable samples; they come first."""
        return int(self.meta["counts"]["trainable"])

    @property
    def packed(self) -> bool:
        """Whether its samples are packed: each of one segment or several, which do not see one another."""
        return "segments.npy" in self.meta["sizes"]

    @property
    def words(self) -> int:
        """Size of the vocabulary."""
        return int(self.meta["tokenizer"]["size"])

    @property
    def tokenizer(self) -> Path:
        """Directory of the tokenizer."""
        return self.path / "tokenizer"

    @cached_property
    def _tokens(self) -> Any:
        return np.memmap(self.path / "tokens.bin", dtype=self.meta["dtype"], mode="r")

    @cached_property
    def _offsets(self) -> Any:
        return np.load(self.path / "offsets.npy", mmap_mode="r")

    @cached_property
    def _spans(self) -> Any:
        return np.load(self.path / "targets.npy", mmap_mode="r")

    @cached_property
    def _span_offsets(self) -> Any:
        return np.load(self.path / "target_offsets.npy", mmap_mode="r")

    @cached_property
    def segment_offsets(self) -> Any:
        """In a packed corpus, int64[n+1]: sample i has the segments from the i-th of these to the next."""
        return np.load(self.path / "segment_offsets.npy", mmap_mode="r")

    @cached_property
    def segments(self) -> Any:
        """In a packed corpus, int64[segments+1]: the i-th segment has the tokens from the i-th of these to the next."""
        return np.load(self.path / "segments.npy", mmap_mode="r")

    def starts(self, sample_id: int) -> NDArray[np.int64]:
        """First token of each segment of one sample, (segments,): 0 alone in a corpus that is not packed."""
        self._check(sample_id)
        if not self.packed:
            return np.zeros(1, dtype=np.int64)
        own = self.segments[self.segment_offsets[sample_id] : self.segment_offsets[sample_id + 1]]
        return np.asarray(own - self._offsets[sample_id])

    def tokens(self, sample_id: int) -> NDArray[Any]:
        """Tokens of one sample, (length,), not copied."""
        self._check(sample_id)
        tokens: NDArray[Any] = self._tokens[self._offsets[sample_id] : self._offsets[sample_id + 1]]
        return tokens

    def targets(self, sample_id: int) -> NDArray[np.bool_]:
        """Loss mask of one sample, (length,): True where the token is predicted and scored."""
        self._check(sample_id)
        mask = np.zeros(int(self._offsets[sample_id + 1] - self._offsets[sample_id]), dtype=np.bool_)
        for start, stop in self._spans[self._span_offsets[sample_id] : self._span_offsets[sample_id + 1]]:
            mask[start:stop] = True
        return mask

    def lengths(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of tokens of each sample."""
        return np.asarray(self._offsets[sample_ids + 1] - self._offsets[sample_ids])

    def n_targets(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of tokens of each sample that carry loss."""
        first, last = self._span_offsets[sample_ids], self._span_offsets[sample_ids + 1]
        return np.array(
            [int((self._spans[a:b, 1] - self._spans[a:b, 0]).sum()) for a, b in zip(first, last, strict=True)],
            dtype=np.int64,
        )

    @cached_property
    def set_names(self) -> tuple[str, ...]:
        """Names of the sets that the samples come from; a set's id is its place here."""
        return tuple(
            each["name"] for each in self.meta.get("sets") or [self.meta["source"]]
        )  # one set, before mixtures

    @cached_property
    def _set_ids(self) -> NDArray[np.uint16]:
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(self.path / "samples.parquet", columns=["source"])
        column = table["source"].combine_chunks().dictionary_encode()
        places = np.array([self.set_names.index(name) for name in column.dictionary.to_pylist()], dtype=np.uint16)
        return np.asarray(places[column.indices.to_numpy()])

    def sets(self, sample_ids: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Id of the set that each sample comes from: its place in `set_names`."""
        return np.asarray(self._set_ids[sample_ids])

    def digest(self, sample_id: int) -> bytes:
        """Digest of one sample, computed from its tokens, mask and segments as they lie on disk."""
        return digest(self.tokens(sample_id), self.targets(sample_id), self.starts(sample_id))

    def samples(self) -> pyarrow.Table:
        """The table of samples (docs/formats.md): digest, split, lengths, document, source, rows, category, author."""
        import pyarrow.parquet

        return pyarrow.parquet.read_table(self.path / "samples.parquet")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the text metrics that the corpus keeps of each sample; none unless it was prepared with them."""
        return tuple(self.meta.get("metrics", ()))

    def metric(self, name: str) -> NDArray[np.float32]:
        """One text metric of every sample, (n,): trainable samples first, as their ids are.

        Raises
        ------
        UserError
            When the corpus does not have it.
        """
        if name not in self.metrics:
            known = f"it has {', '.join(self.metrics)}" if self.metrics else "it has none; prepare it with --metrics"
            raise UserError(f"{self.path.name}: no metric {name!r}; {known}")
        import pyarrow.parquet

        column = pyarrow.parquet.read_table(self.path / METRICS, columns=[name])[name]
        return np.asarray(column.to_numpy(), dtype=np.float32)

    def _check(self, sample_id: int) -> None:
        if not 0 <= sample_id < self.n:
            raise UserError(f"sample {sample_id}: out of range, {self.path.name} holds samples 0 … {self.n - 1}")
