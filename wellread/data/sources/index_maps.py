"""GPT-NeoX's cached index maps: samples in the order of training, put together from the documents of a Megatron set.

Sample i of the training is row shuffle_idx[i] of sample_idx. A row (d, o) and the one after it, (e, p), say that the
sample begins with token o of document doc_idx[d] and ends with token p of document doc_idx[e], included: a sample
has seq_length + 1 tokens, and its last is the first of the next row. A document of these maps is a sequence of the
.idx. Definition: ``megatron/data/gpt2_dataset.py`` of https://github.com/EleutherAI/gpt-neox, in its default packing
(``pack_impl: packed``).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.digest import digest
from wellread.data.sources.blocks import ENTRIES, every, hash_file, spaced
from wellread.data.sources.megatron import Megatron, check_range
from wellread.errors import UserError

NAMES = ("doc_idx", "sample_idx", "shuffle_idx")
ROWS = 64
"""Rows of sample_idx whose lengths are worked out together on opening: each asks for a few sizes at random places."""


@dataclass(frozen=True)
class IndexMaps:
    """Samples in the order of training: sample i is the i-th that training read, so its order is ``sequential``.

    `open` makes it.
    """

    sequences: Megatron
    doc_idx: NDArray[Any]
    """Sequence of each place of the shuffled stream of documents, memory-mapped."""
    sample_idx: NDArray[Any]
    """(rows + 1, 2): place in doc_idx and offset in tokens at which a row begins, memory-mapped."""
    shuffle_idx: NDArray[Any]
    """Row of each sample, memory-mapped."""
    files: tuple[Path, Path, Path]
    """The three .npy files."""

    @classmethod
    def open(cls, sequences: Megatron, maps: str) -> IndexMaps:
        """Open index maps over `sequences`.

        Parameters
        ----------
        sequences : Megatron
            The set that the maps were built for.
        maps : str
            Paths of doc_idx, sample_idx and shuffle_idx, separated by commas; ``megatron:`` before them is dropped.

        Raises
        ------
        UserError
            When a file is missing or no array of whole numbers of its shape, or when the maps do not fit the set.
        """
        paths = [Path(name) for name in maps.removeprefix("megatron:").split(",") if name]
        if len(paths) != len(NAMES):
            raise UserError(f"--order {maps}: {len(paths)} files, expected three: doc_idx, sample_idx, shuffle_idx")
        doc_idx, sample_idx, shuffle_idx = map(_map, paths, NAMES)
        opened = cls(sequences, doc_idx, sample_idx, shuffle_idx, (paths[0], paths[1], paths[2]))
        opened._check_shapes()
        for start, stop in spaced(len(opened.doc_idx), ENTRIES):
            opened._check_documents(start, stop)
        for start, stop in spaced(opened.n, ENTRIES):
            opened._check_shuffle(start, stop)
        for start, stop in spaced(opened.n, ROWS):
            opened._check_rows(start, stop)
        return opened

    @property
    def path(self) -> Path:
        """Prefix of the Megatron set."""
        return self.sequences.path

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.shuffle_idx)

    @property
    def n_trainable(self) -> int:
        """Number of trainable samples: all, nothing is sealed here."""
        return self.n

    @cached_property
    def n_tokens(self) -> int:
        """Tokens of every sample: GPT-NeoX's seq_length + 1."""
        return int(self._lengths(0, 1)[0])

    @cached_property
    def hash(self) -> str:
        """Identity: sha256 over the hash of the set, and size and 64 evenly spaced blocks of 1 MiB of each map."""
        state = hashlib.sha256(f"wellread index maps 1\n{self.sequences.hash}\n".encode())
        for path in self.files:
            hash_file(state, path)
        return state.hexdigest()

    def pieces(self, sample_id: int) -> list[tuple[int, int, int]]:
        """Where a sample comes from: (sequence, start, stop) for each stretch of tokens, in order.

        Raises
        ------
        UserError
            When the sample is out of range, or the maps are damaged at its place.
        """
        check_range(self, np.asarray(sample_id))
        self._check_shuffle(sample_id, sample_id + 1)
        row = int(self.shuffle_idx[sample_id])
        self._check_rows(row, row + 1)
        (first, offset), (last, end) = self.sample_idx[row : row + 2].tolist()
        sequences = self.doc_idx[first : last + 1]
        stops = self.sequences.sizes[sequences].tolist()
        stops[-1] = end + 1
        starts = [offset, *[0] * (last - first)]
        pieces = zip(sequences.tolist(), starts, stops, strict=True)
        return [(sequence, start, stop) for sequence, start, stop in pieces if start < stop]

    def tokens(self, sample_id: int) -> NDArray[Any]:
        """Tokens of one sample, (seq_length + 1,), in the dtype of the set."""
        return np.concatenate([self.sequences.part(*piece) for piece in self.pieces(sample_id)])

    def targets(self, sample_id: int) -> NDArray[np.bool_]:
        """Loss mask of one sample, (seq_length + 1,): True but for the first token, which nothing predicts."""
        check_range(self, np.asarray(sample_id))
        return np.arange(self.n_tokens) > 0

    def lengths(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of tokens of each sample."""
        check_range(self, sample_ids)
        return np.full(np.shape(sample_ids), self.n_tokens, dtype=np.int64)

    def n_targets(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of tokens of each sample that carry loss."""
        return self.lengths(sample_ids) - 1

    def digest(self, sample_id: int) -> bytes:
        """Digest of one sample."""
        return digest(self.tokens(sample_id), self.targets(sample_id))

    def check(self) -> None:
        """Check every entry of the maps in constant memory; ValueError names the first bad one.

        Opening looks at 64 evenly spaced blocks of each map alone, and every read at its own entries. This reads the
        size of every document at a random place of the .idx: minutes for the Pile when it is not in memory.
        """
        for start, stop in every(len(self.doc_idx), ENTRIES):
            self._check_documents(start, stop)
        for start, stop in every(self.n, ENTRIES):
            self._check_shuffle(start, stop)
            self._check_rows(start, stop)

    def _check_shapes(self) -> None:
        rows = len(self.sample_idx) - 1
        if rows < 1 or self.n != rows:
            raise UserError(
                f"{self.files[2]}: {self.n:,} entries, but {self.files[1].name} has {len(self.sample_idx):,} rows, "
                "expected one more than entries; give the three files of one set of maps"
            )

    def _check_documents(self, start: int, stop: int) -> None:
        self._check_below(self.files[0], self.doc_idx, start, stop, self.sequences.n, f"{self.path.name}.idx")

    def _check_shuffle(self, start: int, stop: int) -> None:
        self._check_below(self.files[2], self.shuffle_idx, start, stop, self.n, self.files[1].name)

    def _check_below(self, path: Path, values: NDArray[Any], start: int, stop: int, n: int, held_by: str) -> None:
        block = values[start:stop]
        bad = (block < 0) | (block >= n)
        if bad.any():
            i = int(bad.argmax())
            raise UserError(
                f"{path}: entry {start + i} is {block[i]}, but {held_by} has 0 … {n - 1}; were the maps built for it?"
            )

    def _check_rows(self, start: int, stop: int) -> None:
        places, offsets = self.sample_idx[start : stop + 1].T.astype(np.int64)
        bad = (places < 0) | (places >= len(self.doc_idx)) | (offsets < 0)
        bad[1:] |= places[1:] < places[:-1]
        if bad.any():
            i = int(bad.argmax())
            raise UserError(
                f"{self.files[1]}: row {start + i} is ({places[i]}, {offsets[i]}), but places must not fall and lie in "
                f"0 … {len(self.doc_idx) - 1}, offsets not below 0; only GPT-NeoX's pack_impl packed is supported"
            )
        self._check_documents(int(places[0]), int(places[-1]) + 1)
        past = offsets >= np.maximum(self.sequences.sizes[self.doc_idx[places]], 1)  # row 0 may begin in an empty one
        lengths = self._lengths(start, stop)
        odd = lengths != self.n_tokens
        if past.any() or odd.any():
            i = int(past.argmax() if past.any() else odd.argmax())
            found = "begins behind the end of its document" if past.any() else f"has {lengths[i]:,} tokens"
            raise UserError(
                f"{self.files[1]}: row {start + i} {found}, row 0 has {self.n_tokens:,} tokens: the maps were built "
                "for another set than this, or not with pack_impl packed, the one supported"
            )

    def _lengths(self, start: int, stop: int) -> NDArray[np.int64]:
        """Tokens of rows start … stop - 1: those of all documents between, less the offset, plus the shared last."""
        places, offsets = self.sample_idx[start : stop + 1].T.astype(np.int64)
        sizes = self.sequences.sizes[self.doc_idx[places[0] : places[-1]]]
        before = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])[places - places[0]]
        return np.asarray(np.diff(before + offsets) + 1)


def _map(path: Path, name: str) -> NDArray[Any]:
    if not path.is_file():
        raise UserError(f"--order megatron: {name} {path} does not exist")
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: no {name}: not a whole .npy file ({str(error).splitlines()[0]})") from None
    shape = "(n + 1, 2)" if name == "sample_idx" else "(n,)"
    if array.shape[1:] != ((2,) if name == "sample_idx" else ()) or not array.ndim or array.dtype.kind not in "iu":
        raise UserError(f"{path}: no {name}: {array.dtype}{list(array.shape)}, expected whole numbers, {shape}")
    return array
