"""Reading Megatron's .idx and .bin in place; the .bin may be split into numbered parts.

Index and tokens are memory-mapped, not loaded. `Megatron.open` checks evenly spaced blocks of the index, which cover it
completely up to 4 million sequences. Each read checks the entry that it uses. `Megatron.check` checks all entries.

Pythia's pre-shuffled Pile has 2,049 tokens per sequence and is stored in training order: the order ``sequential`` with
batches of 1,024 is the order of Pythia's training. Layout: ``megatron/data/indexed_dataset.py`` of
https://github.com/EleutherAI/gpt-neox.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.digest import digest
from wellread.corpus.read import SampleReader
from wellread.data.sources.blocks import BYTES, ENTRIES, every, hash_file, mapped, spaced
from wellread.errors import UserError

MAGIC = b"MMIDIDX\0\0"
HEADER = struct.Struct("<9sQBQQ")
"""Magic, version, dtype code, number of sequences, length of doc_idx: 34 bytes."""
DTYPES = {1: "|u1", 2: "|i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
PYTHIA_TOKENS = 2049
PYTHIA_BATCH = 1024


@dataclass(frozen=True)
class Megatron:
    """PREFIX.idx and its .bin: sample i is sequence i; all are trainable; all tokens except the first carry loss.

    Use `open` to create it.
    """

    path: Path
    """PREFIX."""
    n: int
    """Number of sequences."""
    dtype: np.dtype[Any]
    """Dtype of the tokens on disk."""
    sizes: NDArray[np.int32]
    """Tokens of each sequence, memory-mapped."""
    pointers: NDArray[np.int64]
    """First byte of each sequence in the .bin, memory-mapped."""
    doc_idx: NDArray[np.int64]
    """First sequence of each document, if the writer recorded documents, memory-mapped."""
    shards: tuple[Path, ...]
    """The .bin, or its parts in order: split at arbitrary bytes, so that even a token may span two parts."""

    @classmethod
    def open(cls, prefix: str | Path) -> Megatron:
        """Open PREFIX.idx with PREFIX.bin, or with its N + 1 parts PREFIX-00000-of-0000N.bin …

        Parameters
        ----------
        prefix : str or Path
            Path without suffix, or path of any of the files.

        Raises
        ------
        UserError
            When a file or part is missing, or the index is damaged or does not match the .bin.
        """
        path = Path(re.sub(r"(-\d{5}-of-\d{5})?\.(bin|idx)$", "", str(prefix))).absolute()
        index = Path(f"{path}.idx")
        dtype, n, n_documents = _header(index)
        sizes = mapped(index, "<i4", HEADER.size, n)
        pointers = mapped(index, "<i8", HEADER.size + 4 * n, n)
        doc_idx = mapped(index, "<i8", HEADER.size + 12 * n, n_documents)
        opened = cls(path, n, np.dtype(dtype), sizes, pointers, doc_idx, _shards(path))
        opened._check_length()
        for start, stop in spaced(n, ENTRIES):
            opened._check_index(start, stop)
        return opened

    @property
    def n_trainable(self) -> int:
        """Number of trainable samples: all, because none are sealed."""
        return self.n

    @cached_property
    def hash(self) -> str:
        """Identity: SHA-256 of the sizes of .idx and .bin and of 64 evenly spaced 1 MiB blocks of each.

        Files of up to 64 MiB are hashed completely. The hash does not depend on file names, or on whether the .bin is
        split into parts.
        """
        state = hashlib.sha256(b"wellread megatron 1\n")
        hash_file(state, Path(f"{self.path}.idx"))
        state.update(f"{self.n_bytes}\n".encode())
        for start, stop in spaced(self.n_bytes, BYTES):
            state.update(self._bytes(start, stop).data)
        return state.hexdigest()

    @property
    def n_bytes(self) -> int:
        """Size of the .bin in bytes, summed over all parts."""
        return self._starts[-1]

    @cached_property
    def _starts(self) -> list[int]:
        """First byte of each part, and the end of the last."""
        return [int(start) for start in np.cumsum([0, *(shard.stat().st_size for shard in self.shards)])]

    @cached_property
    def _bins(self) -> list[NDArray[np.uint8]]:
        return [mapped(shard, "|u1", 0, shard.stat().st_size) for shard in self.shards]

    def _bytes(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes start … stop - 1 of the .bin; copied only if they span several parts."""
        parts: list[NDArray[np.uint8]] = []
        shard = bisect_right(self._starts, start) - 1
        while start < stop:
            end = min(stop, self._starts[shard + 1])
            parts.append(self._bins[shard][start - self._starts[shard] : end - self._starts[shard]])
            start, shard = end, shard + 1
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint8), *parts])

    def tokens(self, sample_id: int) -> NDArray[Any]:
        """Tokens of one sequence, (length,), in the dtype of the file; ValueError when out of range or damaged."""
        return self.part(sample_id, 0, None)

    def part(self, sample_id: int, start: int, stop: int | None) -> NDArray[Any]:
        """Tokens start … stop - 1 of one sequence (None: to its end); copied only if they span several parts."""
        check_range(self, np.asarray(sample_id))
        self._check_index(sample_id, sample_id + 1)
        first, last, _ = slice(start, stop).indices(int(self.sizes[sample_id]))
        begin, width = int(self.pointers[sample_id]), self.dtype.itemsize
        return self._bytes(begin + first * width, begin + last * width).view(self.dtype)

    def targets(self, sample_id: int) -> NDArray[np.bool_]:
        """Loss mask of one sequence, (length,): True except for the first token, which is not predicted."""
        check_range(self, np.asarray(sample_id))
        return np.arange(self.sizes[sample_id]) > 0

    def lengths(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of tokens of each sample."""
        check_range(self, sample_ids)
        return np.asarray(self.sizes[sample_ids], dtype=np.int64)

    def n_targets(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of tokens of each sample that carry loss."""
        return np.maximum(self.lengths(sample_ids) - 1, 0)

    def digest(self, sample_id: int) -> bytes:
        """Digest of one sample."""
        return digest(self.tokens(sample_id), self.targets(sample_id))

    @property
    def is_pythia_shaped(self) -> bool:
        """Whether every sequence has 2,049 tokens, as in Pythia's pre-shuffled Pile; reads all sizes."""
        return self.n > 0 and self._unlike_pythia() is None

    def check_pythia_order(self, batch_size: int) -> None:
        """Check that the order ``sequential`` over these sequences can be the order of Pythia's training.

        Raises
        ------
        UserError
            When the batch size is not 1,024, or a sequence does not have 2,049 tokens.
        """
        if batch_size != PYTHIA_BATCH:
            raise UserError(f"--batch_size {batch_size}: not Pythia's order; use --batch_size {PYTHIA_BATCH}")
        odd = self._unlike_pythia()
        if odd is None and self.n:
            return
        problem = "it contains no sequence" if odd is None else f"sequence {odd} has {self.sizes[odd]:,} tokens"
        raise UserError(
            f"{self.path}.idx: not Pythia's order: {problem}, but Pythia's pre-shuffled Pile has 2,049 per sequence; "
            "read unshuffled files with --order megatron:DOC_IDX.npy,SAMPLE_IDX.npy,SHUFFLE_IDX.npy"
        )

    def _unlike_pythia(self) -> int | None:
        for start, stop in every(self.n, 16 * ENTRIES):
            unlike = self.sizes[start:stop] != PYTHIA_TOKENS
            if unlike.any():
                return start + int(unlike.argmax())
        return None

    def check(self) -> None:
        """Check the complete index in constant memory; the ValueError names the first invalid entry."""
        for start, stop in every(self.n, ENTRIES):
            self._check_index(start, stop)

    def _check_length(self) -> None:
        end = int(self.pointers[-1]) + int(self.sizes[-1]) * self.dtype.itemsize if self.n else 0
        if end > self.n_bytes:
            where = f"{self.path}.bin" if len(self.shards) == 1 else f"{self.path}-*.bin, {len(self.shards)} parts"
            raise UserError(
                f"{where}: {self.n_bytes:,} bytes, {end - self.n_bytes:,} fewer than in its .idx; download it again"
            )

    def _check_index(self, start: int, stop: int) -> None:
        sizes, pointers = self.sizes[start:stop].astype(np.int64), self.pointers[start:stop]
        width = self.dtype.itemsize
        bad = (sizes < 0) | (pointers < 0) | (pointers > self.n_bytes - sizes * width) | (pointers % width != 0)
        if bad.any():
            i = int(bad.argmax())
            raise UserError(
                f"{self.path}.idx: sequence {start + i} is damaged: {sizes[i]:,} tokens of {width} bytes at byte "
                f"{pointers[i]:,} do not fit the {self.n_bytes:,} bytes of the .bin; download the .idx again"
            )


def check_range(samples: SampleReader, sample_ids: NDArray[np.integer[Any]]) -> None:
    """Raise a ValueError for sample ids outside 0 … n - 1."""
    outside = (sample_ids < 0) | (sample_ids >= samples.n)
    if outside.any():
        first = int(np.atleast_1d(sample_ids)[np.atleast_1d(outside)][0])
        raise UserError(f"sample {first}: out of range, {samples.path.name} has samples 0 … {samples.n - 1}")


def _header(index: Path) -> tuple[str, int, int]:
    """Dtype, number of sequences and length of doc_idx, checked against the size of the file."""
    if not index.is_file():
        raise UserError(f"{index}: does not exist; pass the path of an .idx file without its suffix")
    with open(index, "rb") as file:
        data = file.read(HEADER.size)
    if not data.startswith(MAGIC):
        raise UserError(f"{index}: not a Megatron index: wrong magic {data[: len(MAGIC)]!r}, expected {MAGIC!r}")
    if len(data) < HEADER.size:
        raise UserError(f"{index}: cut off inside its header, after {len(data)} bytes; download it again")
    _, version, code, n, n_documents = HEADER.unpack(data)
    if version != 1:
        raise UserError(f"{index}: version {version}; only version 1 of the format is supported")
    if code in (6, 7):
        raise UserError(
            f"{index}: dtype code {code} means float32 or float64, depending on the writer, but tokens must be "
            "integers; write the file again with one of the codes 1 to 5 or 8"
        )
    if code not in DTYPES:
        raise UserError(f"{index}: unknown dtype code {code}; supported codes are 1 to 5 and 8")
    extra = index.stat().st_size - HEADER.size - 12 * n - 8 * n_documents
    if extra < 0:
        raise UserError(f"{index}: cut off, {-extra:,} bytes too short for {n:,} sequences; download it again")
    if extra not in (0, n):  # newer writers append one int8 "mode" per sequence
        raise UserError(f"{index}: {extra:,} bytes too long for {n:,} sequences, so it is damaged; download it again")
    return DTYPES[code], n, n_documents


def _shards(prefix: Path) -> tuple[Path, ...]:
    single = Path(f"{prefix}.bin")
    if single.is_file():
        return (single,)
    pattern = re.compile(re.escape(prefix.name) + r"-\d{5}-of-(\d{5})\.bin")
    lasts = sorted({m[1] for m in map(pattern.fullmatch, os.listdir(prefix.parent)) if m})
    if not lasts:
        raise UserError(f"{single}: does not exist, as one file or as parts {prefix.name}-00000-of-….bin")
    if len(lasts) > 1:
        raise UserError(
            f"{prefix}: has parts of {len(lasts)} different splits (-of-{', -of-'.join(lasts)}); keep those of one"
        )
    paths = [Path(f"{prefix}-{k:05d}-of-{lasts[0]}.bin") for k in range(int(lasts[0]) + 1)]
    for k, path in enumerate(paths):
        if not path.is_file():
            raise UserError(f"{path}: missing part {k} of 0 … {len(paths) - 1}; download it")
    return tuple(paths)
