"""Writing Megatron's .idx and .bin from a stream of token sequences."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike

from wellread.data.sources.blocks import ENTRIES, every
from wellread.data.sources.megatron import DTYPES, HEADER, MAGIC, Megatron
from wellread.errors import UserError


def write(prefix: str | Path, sequences: Iterable[ArrayLike], dtype: str = "uint16") -> Megatron:
    """Write PREFIX.bin and PREFIX.idx from a stream of token sequences, in constant memory; each is one document.

    Parameters
    ----------
    prefix : str or Path
        Output path without suffix; neither file may exist. The .idx appears last, after all data is on disk.
    sequences : iterable of (length,) integers
    dtype : str
        uint8, int8, int16, int32, int64 or uint16.

    Raises
    ------
    UserError
        When a file exists, the dtype is unknown, or a sequence contains values that do not fit the dtype; names the
        sequence.
    """
    codes = {np.dtype(name).name: code for code, name in DTYPES.items()}
    if dtype not in codes:
        raise UserError(f"dtype {dtype}: unknown to Megatron; choose {', '.join(codes)}")
    tokens, index, sizes = (Path(f"{prefix}.{suffix}") for suffix in ("bin", "idx", "sizes.tmp"))
    for path in (tokens, index):
        if path.exists():
            raise UserError(f"{path}: already exists; remove it or choose another prefix")
    partial = [path.with_name(f"{path.name}.tmp") for path in (tokens, index)]
    try:
        with open(partial[0], "wb") as bin_file, open(sizes, "wb+") as sizes_file, open(partial[1], "wb") as idx_file:
            n = _write_tokens(bin_file, sizes_file, sequences, np.dtype(DTYPES[codes[dtype]]))
            idx_file.write(HEADER.pack(MAGIC, 1, codes[dtype], n, n + 1))
            _write_index(idx_file, sizes_file, n, np.dtype(dtype).itemsize)
            for file in (bin_file, idx_file):
                file.flush()
                os.fsync(file.fileno())
        for source, target in zip(partial, (tokens, index), strict=True):
            os.replace(source, target)
    finally:
        for path in (sizes, *partial):
            path.unlink(missing_ok=True)
    return Megatron.open(prefix)


def _write_tokens(file: IO[bytes], sizes: IO[bytes], sequences: Iterable[ArrayLike], dtype: np.dtype[Any]) -> int:
    n = 0
    limits = np.iinfo(dtype)
    for sequence in sequences:
        values = np.asarray(sequence)
        if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
            raise UserError(f"sequence {n}: {values.ndim}-dimensional {values.dtype}, expected a list of token ids")
        if values.size and (values.min() < limits.min or values.max() > limits.max):
            raise UserError(f"sequence {n}: tokens {values.min()} … {values.max()} do not fit {dtype.name}")
        file.write(values.astype(dtype).tobytes())
        sizes.write(struct.pack("<i", values.size))
        n += 1
    return n


def _write_index(file: IO[bytes], sizes: IO[bytes], n: int, width: int) -> None:
    sizes.seek(0)
    shutil.copyfileobj(sizes, file)
    sizes.seek(0)
    end = 0
    while chunk := sizes.read(4 * ENTRIES):
        ends = end + np.cumsum(np.frombuffer(chunk, "<i4"), dtype=np.int64) * width
        file.write(np.concatenate([[end], ends[:-1]]).astype("<i8").tobytes())
        end = int(ends[-1])
    for start, stop in every(n + 1, ENTRIES):
        file.write(np.arange(start, stop, dtype="<i8").tobytes())
