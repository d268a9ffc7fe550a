"""GPT-NeoX's cached index maps: samples in the order of training, joined from the documents of Megatron files.

Sample i of the training is row shuffle_idx[i] of sample_idx. If this row is (d, o) and the next row is (e, p), then the
sample begins with token o of document doc_idx[d] and ends with token p of document doc_idx[e], inclusive. A sample has
seq_length + 1 tokens; its last token is also the first token of the next row. A document of these maps is a sequence of
the .idx. Definition: ``megatron/data/gpt2_dataset.py`` of https://github.com/EleutherAI/gpt-neox, with its default
packing (``pack_impl: packed``).
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
from wellread.files import map_array

NAMES = ("doc_idx", "sample_idx", "shuffle_idx")
ROWS = 64
"""Rows of sample_idx whose lengths are checked at once on opening; each reads a few sizes at random positions."""


@dataclass(frozen=True)
class IndexMaps:
    """Samples in the order of training: sample i is the i-th that training read, so the order is ``sequential``.

    Use `open` to create it.
    """

    sequences: Megatron
    doc_idx: NDArray[Any]
    """Shuffled stream of documents, each as the number of its sequence, memory-mapped."""
    sample_idx: NDArray[Any]
    """(rows + 1, 2): start of each row as index into doc_idx and offset in tokens, memory-mapped."""
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
            The Megatron files for which the maps were built.
        maps : str
            Paths of doc_idx, sample_idx and shuffle_idx, separated by commas; a leading ``megatron:`` is ignored.

        Raises
        ------
        UserError
            When a file is missing or not an integer array of the expected shape, or when the maps do not match the
            Megatron files.
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
        """Prefix of the Megatron files."""
        return self.sequences.path

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.shuffle_idx)

    @property
    def n_trainable(self) -> int:
        """Number of trainable samples: all, because none are sealed."""
        return self.n

    @cached_property
    def n_tokens(self) -> int:
        """Tokens per sample: GPT-NeoX's seq_length + 1."""
        return int(self._lengths(0, 1)[0])

    @cached_property
    def hash(self) -> str:
        """Identity: SHA-256 of the Megatron files' hash, and of size and 64 evenly spaced 1 MiB blocks of each map."""
        state = hashlib.sha256(f"wellread index maps 1\n{self.sequences.hash}\n".encode())
        for path in self.files:
            hash_file(state, path)
        return state.hexdigest()

    def pieces(self, sample_id: int) -> list[tuple[int, int, int]]:
        """Token ranges that make a sample: (sequence, start, stop) for each, in order.

        Raises
        ------
        UserError
            When the sample is out of range, or its entries in the maps are damaged.
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
        """Tokens of one sample, (seq_length + 1,), in the dtype of the Megatron files."""
        return np.concatenate([self.sequences.part(*piece) for piece in self.pieces(sample_id)])

    def targets(self, sample_id: int) -> NDArray[np.bool_]:
        """Loss mask of one sample, (seq_length + 1,): True except for the first token, which is not predicted."""
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
        """Check all entries of the maps in constant memory; the ValueError names the first invalid entry.

        `open` checks only 64 evenly spaced blocks of each map, and each read only the entries that it uses. This method
        reads the size of every document at a random position of the .idx, which takes minutes for The Pile if the file
        is not in the page cache.
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
                "expected one more than entries; use the three files of the same index maps"
            )

    def _check_documents(self, start: int, stop: int) -> None:
        self._check_below(self.files[0], self.doc_idx, start, stop, self.sequences.n, f"{self.path.name}.idx")

    def _check_shuffle(self, start: int, stop: int) -> None:
        self._check_below(self.files[2], self.shuffle_idx, start, stop, self.n, self.files[1].name)

    def _check_below(self, path: Path, values: NDArray[Any], start: int, stop: int, n: int, target_name: str) -> None:
        block = values[start:stop]
        bad = (block < 0) | (block >= n)
        if bad.any():
            i = int(bad.argmax())
            raise UserError(
                f"{path}: entry {start + i} is {block[i]}, but {target_name} has 0 … {n - 1}; use maps built for it"
            )

    def _check_rows(self, start: int, stop: int) -> None:
        places, offsets = self.sample_idx[start : stop + 1].T.astype(np.int64)
        bad = (places < 0) | (places >= len(self.doc_idx)) | (offsets < 0)
        bad[1:] |= places[1:] < places[:-1]
        if bad.any():
            i = int(bad.argmax())
            raise UserError(
                f"{self.files[1]}: row {start + i} is ({places[i]}, {offsets[i]}), but document indices must be "
                f"sorted and in 0 … {len(self.doc_idx) - 1}, offsets at least 0; use GPT-NeoX's pack_impl packed"
            )
        self._check_documents(int(places[0]), int(places[-1]) + 1)
        # Row 0 may start in an empty document.
        past = offsets >= np.maximum(self.sequences.sizes[self.doc_idx[places]], 1)
        lengths = self._lengths(start, stop)
        odd = lengths != self.n_tokens
        if past.any() or odd.any():
            i = int(past.argmax() if past.any() else odd.argmax())
            problem = "starts after the end of its document" if past.any() else f"has {lengths[i]:,} tokens"
            raise UserError(
                f"{self.files[1]}: row {start + i} {problem}, row 0 has {self.n_tokens:,} tokens; "
                "use maps built for these Megatron files with pack_impl packed"
            )

    def _lengths(self, start: int, stop: int) -> NDArray[np.int64]:
        """Number of tokens of rows start … stop - 1, including the token that each row shares with the next."""
        places, offsets = self.sample_idx[start : stop + 1].T.astype(np.int64)
        sizes = self.sequences.sizes[self.doc_idx[places[0] : places[-1]]]
        before = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])[places - places[0]]
        return np.asarray(np.diff(before + offsets) + 1)


def _map(path: Path, name: str) -> NDArray[Any]:
    if not path.is_file():
        raise UserError(f"--order megatron: {name} {path} does not exist")
    try:
        array: NDArray[Any] = map_array(path)
    except (ValueError, OSError) as error:
        raise UserError(
            f"{path}: not a valid {name}: not a complete .npy file ({str(error).splitlines()[0]})"
        ) from None
    shape = "(n + 1, 2)" if name == "sample_idx" else "(n,)"
    if array.shape[1:] != ((2,) if name == "sample_idx" else ()) or not array.ndim or array.dtype.kind not in "iu":
        raise UserError(f"{path}: not a valid {name}: {array.dtype}{list(array.shape)}, expected integers, {shape}")
    return array
