"""Access to large files without loading them: memory mapping, and checks of evenly spaced blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ENTRIES = 1 << 16
"""Entries of an index that are checked at once."""
BYTES = 1 << 20
"""Bytes of a file that are hashed at once."""
BLOCKS = 64


def spaced(n: int, size: int) -> Iterator[tuple[int, int]]:
    """Half-open blocks of `size` entries of 0 … n - 1: at most 64, evenly spaced, including the first and the last."""
    starts = range(0, n, size) if n <= BLOCKS * size else [(n - size) * i // (BLOCKS - 1) for i in range(BLOCKS)]
    return ((start, min(start + size, n)) for start in starts)


def every(n: int, size: int) -> Iterator[tuple[int, int]]:
    """Half-open blocks of `size` entries that cover 0 … n - 1."""
    return ((start, min(start + size, n)) for start in range(0, n, size))


def mapped(path: Path, dtype: str, offset: int, count: int) -> NDArray[Any]:
    """Memory-map `count` entries of a file, starting at byte `offset`; an empty array if `count` is 0."""
    return np.memmap(path, dtype, "r", offset, (count,)) if count else np.empty(0, dtype)


def hash_file(state: hashlib._Hash, path: Path) -> None:
    """Update a hash with the size of a file and 64 evenly spaced blocks of 1 MiB; up to 64 MiB, the complete file."""
    size = path.stat().st_size
    state.update(f"{size}\n".encode())
    with open(path, "rb") as file:
        for start, stop in spaced(size, BYTES):
            file.seek(start)
            state.update(file.read(stop - start))
