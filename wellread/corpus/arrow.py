"""Arrow tables of a corpus, and numpy arrays as Arrow columns, without copying the values.

`pyarrow.array` does the same, but imports pandas at its first call. pandas is not used here, and importing it takes a
third of a second and 48 MiB in every rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from wellread.files import damage_named

if TYPE_CHECKING:
    import pyarrow

COMPILE_AGAIN = "delete this corpus and compile it again"
"""What to do about a damaged file of a corpus."""


def read_table(file: Path, columns: Sequence[str] | None = None) -> pyarrow.Table:
    """Read all or some columns of a table of a corpus.

    Raises
    ------
    UserError
        When it is damaged.
    """
    import pyarrow.parquet

    with damage_named(file, COMPILE_AGAIN):
        return pyarrow.parquet.read_table(file, columns=None if columns is None else list(columns))


def numbers(values: ArrayLike, dtype: DTypeLike) -> pyarrow.Array:
    """Integers or floats, (n,), as a column of type `dtype`."""
    import pyarrow

    array = np.ascontiguousarray(values, dtype=dtype)
    return pyarrow.Array.from_buffers(pyarrow.from_numpy_dtype(array.dtype), len(array), [None, _buffer(array)])


def flags(values: ArrayLike) -> pyarrow.Array:
    """Booleans, (n,), as a column with one bit per value."""
    import pyarrow

    array = np.asarray(values, dtype=np.bool_)
    bits = np.packbits(array, bitorder="little")
    return pyarrow.Array.from_buffers(pyarrow.bool_(), len(array), [None, _buffer(bits)])


def digests(values: bytes, size: int) -> pyarrow.Array:
    """Concatenated digests of `size` bytes each, as a column of fixed-size binary values."""
    import pyarrow

    return pyarrow.Array.from_buffers(pyarrow.binary(size), len(values) // size, [None, pyarrow.py_buffer(values)])


def texts(values: Sequence[str]) -> pyarrow.Array:
    """Strings as a column."""
    import pyarrow

    encoded = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    small = ends[-1] < 1 << 31  # otherwise a column of type string cannot address its bytes
    buffers = [None, _buffer(ends.astype(np.int32) if small else ends), pyarrow.py_buffer(b"".join(encoded))]
    return pyarrow.Array.from_buffers(pyarrow.string() if small else pyarrow.large_string(), len(encoded), buffers)


def words(values: Iterable[str]) -> pyarrow.Array:
    """Strings with many repeats, (n,), as a dictionary column; its dictionary is in order of first appearance."""
    places: dict[str, int] = {}
    indices = [places.setdefault(value, len(places)) for value in values]
    return categories(indices, list(places))


def categories(indices: ArrayLike, names: Sequence[str]) -> pyarrow.Array:
    """A dictionary column: for each of `indices`, (n,), the name at that index of `names`."""
    import pyarrow

    return pyarrow.DictionaryArray.from_arrays(numbers(indices, np.int32), texts(names))


def lists(values: ArrayLike, lengths: ArrayLike, dtype: DTypeLike) -> pyarrow.Array:
    """Concatenated numbers as a column of lists; `lengths`, (n,), says how many numbers each list has."""
    import pyarrow

    starts = np.concatenate([[0], np.cumsum(lengths)])
    return pyarrow.ListArray.from_arrays(numbers(starts, np.int32), numbers(values, dtype))


def _buffer(array: NDArray[Any]) -> pyarrow.Buffer:
    import pyarrow

    return pyarrow.py_buffer(array.view(np.uint8) if array.size else b"")
