"""The corpus: an immutable directory of tokenized samples, memory-mapped and identified by a hash."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wellread.corpus import arrow, canaries, marks
from wellread.corpus.arrow import COMPILE_AGAIN as COMPILE_AGAIN
from wellread.corpus.canaries import Registration
from wellread.corpus.columns import consecutive, is_ascending
from wellread.corpus.digest import digest
from wellread.errors import UserError
from wellread.files import damage_named, load_array, read_json, release

if TYPE_CHECKING:
    import pyarrow

METRICS = "metrics.parquet"
META = {
    "hash": str, "dtype": str, "counts": {...: int}, "examples": {...: str}, "sizes": {...: int}, "sha256": {...: str},
    "settings": dict,
    "kind": str, "packing": str, "sets": [{"name": str}], "source": {"name": str}, "tokenizer": {"size": int},
    "metrics": [str], "bad_rows": list, "canaries": canaries.SHAPE,
    "marks": marks.SHAPE,
}  # fmt: skip
"""Shape of corpus.json."""

DTYPES = ("<u2", "<u4")
"""Types of tokens; another one could be wider, or read the file as references to objects."""


def check_meta(file: Path, meta: Any) -> None:
    """Check the parts of corpus.json on which reading the other files depends.

    Raises
    ------
    UserError
        Names the key.
    """

    def damaged(key: str, expected: str) -> UserError:
        return UserError(f"{file}: damaged ({key}: expected {expected}); {COMPILE_AGAIN}")

    counts, sizes = meta["counts"], meta["sizes"]
    if meta["dtype"] not in DTYPES:
        raise damaged("dtype", " or ".join(DTYPES))
    if not 0 <= counts["trainable"] <= counts["samples"]:
        raise damaged("counts", "no more trainable samples than samples")
    if not sizes:
        raise damaged("sizes", "the size of each file")
    for name, size in sizes.items():
        if name in ("", ".", "..") or Path(name).name != name or "\0" in name or size < 0:
            raise damaged("sizes", f"names of files in its folder and numbers of bytes, not {name!r}: {size!r}")


class SampleReader(Protocol):
    """What training and evaluations need to read samples, for all storage formats."""

    @property
    def path(self) -> Path:
        """Directory or file of the samples."""

    @property
    def hash(self) -> str:
        """Hash that identifies the samples."""

    @property
    def n(self) -> int:
        """Number of samples."""

    @property
    def n_trainable(self) -> int:
        """Number of trainable samples; their ids come first, sealed ones follow."""

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
    """A compiled corpus. Samples 0 … n_trainable-1 may be trained on; the following ones are sealed."""

    path: Path
    meta: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Corpus:
        """Open a compiled corpus.

        Raises
        ------
        UserError
            When `path` has no corpus, or an incomplete one.
        """
        path = Path(path).resolve()
        try:
            meta = read_json(path / "corpus.json", META)
        except FileNotFoundError:
            raise UserError(f"{path}: not a corpus (corpus.json is missing); compile it again") from None
        check_meta(path / "corpus.json", meta)
        for name, size in meta["sizes"].items():
            if not (path / name).is_file() or (path / name).stat().st_size != size:
                raise UserError(f"{path / name}: missing or not {size:,} bytes long; delete {path} and compile again")
        return cls(path, meta)

    @property
    def hash(self) -> str:
        """Identity: hash over each sample's digest, document and split (trainable or sealed)."""
        return str(self.meta["hash"])

    @property
    def n(self) -> int:
        """Number of samples, including sealed ones."""
        return int(self.meta["counts"]["samples"])

    @property
    def n_trainable(self) -> int:
        """Number of trainable samples; their ids come first."""
        return int(self.meta["counts"]["trainable"])

    @cached_property
    def canaries(self) -> Registration | None:
        """The registered draw of canaries; None without canaries."""
        return Registration.of(self.meta)

    @cached_property
    def marks(self) -> marks.Registration | None:
        """The registered marks; None without marks."""
        return marks.Registration.of(self.meta)

    @property
    def n_ordinary(self) -> int:
        """Number of trainable samples without canaries; their ids come first, canaries follow."""
        return self.n_trainable - (self.canaries.count if self.canaries else 0)

    def why_not(self, sample_id: int) -> str:
        """Why an order cannot select a sample."""
        if not 0 <= sample_id < self.n:
            return f"there is no sample {sample_id}"
        return f"sample {sample_id} is {'sealed' if sample_id >= self.n_trainable else 'a canary'}"

    @property
    def longest(self) -> int:
        """Maximum number of tokens of a sample: the setting, or the longest sample of a corpus without it."""
        return int(self.meta["settings"].get("seq_len") or self.meta["counts"]["longest"])

    @property
    def packed(self) -> bool:
        """Whether its samples are packed: each has one or several segments, which do not attend to each other."""
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
        with damage_named(self.path / "tokens.bin", COMPILE_AGAIN):
            return np.memmap(self.path / "tokens.bin", dtype=self.meta["dtype"], mode="r")

    @cached_property
    def _offsets(self) -> Any:
        n_bytes = (self.path / "tokens.bin").stat().st_size
        return self._bounds("offsets.npy", self.n, n_bytes // np.dtype(self.meta["dtype"]).itemsize)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """int64[n+1]: sample i is offsets[i] … offsets[i+1]-1 of the corpus's tokens."""
        return np.asarray(self._offsets)

    @cached_property
    def _spans(self) -> Any:
        spans = load_array(self.path / "targets.npy", COMPILE_AGAIN)
        if spans.dtype != np.int32 or spans.ndim != 2 or spans.shape[1] != 2:
            raise self._not_the_format("targets.npy", spans, "int32[…, 2]")
        return spans

    @cached_property
    def _span_offsets(self) -> Any:
        return self._bounds("target_offsets.npy", self.n, len(self._spans))

    def _bounds(self, name: str, count: int, last: int | None) -> Any:
        """An array of `count` + 1 bounds from 0 to `last` (None: any)."""
        array = load_array(self.path / name, COMPILE_AGAIN)
        if array.dtype != np.int64 or array.shape != (count + 1,):
            raise self._not_the_format(name, array, f"int64[{count + 1}]")
        if array[0] != 0 or (last is not None and array[-1] != last):
            raise UserError(
                f"{self.path / name}: damaged (from {array[0]:,} to {array[-1]:,}, expected from 0"
                f"{'' if last is None else f' to {last:,}'}); {COMPILE_AGAIN}"
            )
        if not is_ascending(array):  # else one altered byte could ask for any amount of memory
            raise UserError(f"{self.path / name}: damaged (its values are not ascending); {COMPILE_AGAIN}")
        release(array)
        return array

    def _not_the_format(self, name: str, array: Any, expected: str) -> UserError:
        shape = ", ".join(map(str, array.shape))
        return UserError(
            f"{self.path / name}: damaged (contains {array.dtype}[{shape}], expected {expected}); {COMPILE_AGAIN}"
        )

    @cached_property
    def segment_offsets(self) -> Any:
        """In a packed corpus, int64[n+1]: sample i has the segments offsets[i] … offsets[i+1]-1."""
        return self._bounds("segment_offsets.npy", self.n, len(self.segments) - 1)

    @cached_property
    def segments(self) -> Any:
        """In a packed corpus, int64[segments+1]: segment i is segments[i] … segments[i+1]-1 of the corpus's tokens."""
        segments = load_array(self.path / "segments.npy", COMPILE_AGAIN)
        return self._bounds("segments.npy", max(0, segments.size - 1), int(self._offsets[-1]))

    def starts(self, sample_id: int) -> NDArray[np.int64]:
        """Index of the first token of each segment of one sample, (segments,); only 0 in a corpus without packing."""
        self._check(sample_id)
        if not self.packed:
            return np.zeros(1, dtype=np.int64)
        starts = self.segments[self.segment_offsets[sample_id] : self.segment_offsets[sample_id + 1]]
        return np.asarray(starts - self._offsets[sample_id])

    def tokens(self, sample_id: int) -> NDArray[Any]:
        """Tokens of one sample, (length,), a view without a copy."""
        self._check(sample_id)
        tokens: NDArray[Any] = self._tokens[self._offsets[sample_id] : self._offsets[sample_id + 1]]
        return tokens

    def targets(self, sample_id: int) -> NDArray[np.bool_]:
        """Loss mask of one sample, (length,): True where the token carries loss."""
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
        first = np.asarray(self._span_offsets[sample_ids])
        counts = np.asarray(self._span_offsets[sample_ids + 1]) - first
        spans, ends = self._spans[consecutive(first, counts)], np.cumsum(counts)
        sums = np.concatenate([[0], np.cumsum(spans[:, 1] - spans[:, 0], dtype=np.int64)])
        return np.asarray(sums[ends] - sums[ends - counts])

    def release(self) -> None:
        """Give back the memory of its mapped files; what is used again is read again."""
        for name in ("_tokens", "_offsets", "_spans", "_span_offsets", "segments", "segment_offsets"):
            if name in self.__dict__:
                release(self.__dict__[name])

    @cached_property
    def set_names(self) -> tuple[str, ...]:
        """Names of the data sets that the samples come from; the id of a set is its index here."""
        sets = self.meta.get("sets") or [self.meta["source"]]  # corpora from before mixtures have one "source"
        return (*(each["name"] for each in sets), *([canaries.SET] if self.canaries else []))

    @cached_property
    def _set_ids(self) -> NDArray[np.uint16]:
        table = self._table("samples.parquet", ["source"])
        column = table["source"].combine_chunks().dictionary_encode()
        places = np.array([self.set_names.index(name) for name in column.dictionary.to_pylist()], dtype=np.uint16)
        return np.asarray(places[column.indices.to_numpy()])

    def sets(self, sample_ids: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Id of the data set that each sample comes from: its index in `set_names`."""
        return np.asarray(self._set_ids[sample_ids])

    def digest(self, sample_id: int) -> bytes:
        """Digest of one sample, computed from its tokens, loss mask and segments on disk."""
        return digest(self.tokens(sample_id), self.targets(sample_id), self.starts(sample_id))

    def samples(self, columns: list[str] | None = None) -> pyarrow.Table:
        """The table of samples (docs/formats.md): digest, split, lengths, document, source, rows, category, author."""
        return self._table("samples.parquet", columns)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the text metrics that the corpus has for each sample; empty unless prepared with --metrics."""
        return tuple(self.meta.get("metrics", ()))

    def metric(self, name: str) -> NDArray[np.float32]:
        """One text metric of every sample, (n,), in order of sample id.

        Raises
        ------
        UserError
            When the corpus does not have it.
        """
        if name not in self.metrics:
            hint = f"it has {', '.join(self.metrics)}" if self.metrics else "it has none; prepare it with --metrics"
            raise UserError(f"{self.path.name}: no metric {name!r}; {hint}")
        column = self._table(METRICS, [name])[name]
        return np.asarray(column.to_numpy(), dtype=np.float32)

    def _table(self, name: str, columns: list[str] | None = None) -> pyarrow.Table:
        return arrow.read_table(self.path / name, columns)

    def _check(self, sample_id: int) -> None:
        if not 0 <= sample_id < self.n:
            raise UserError(f"sample {sample_id}: out of range, {self.path.name} has samples 0 … {self.n - 1}")
