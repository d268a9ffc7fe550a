"""numpy arrays as Arrow columns, from their own buffers.

`pyarrow.array` does the same, but imports pandas when it is first called: a third of a second and 48 MiB in every
rank, for nothing that is used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

if TYPE_CHECKING:
    import pyarrow


def numbers(values: ArrayLike, dtype: DTypeLike) -> pyarrow.Array:
    """Integers or floats, (n,), as a column of that type."""
    import pyarrow

    array = np.ascontiguousarray(values, dtype=dtype)
    return pyarrow.Array.from_buffers(pyarrow.from_numpy_dtype(array.dtype), len(array), [None, _buffer(array)])


def flags(values: ArrayLike) -> pyarrow.Array:
    """Truth values, (n,), as a column of one bit each."""
    import pyarrow

    array = np.asarray(values, dtype=np.bool_)
    bits = np.packbits(array, bitorder="little")
    return pyarrow.Array.from_buffers(pyarrow.bool_(), len(array), [None, _buffer(bits)])


def digests(values: bytes, size: int) -> pyarrow.Array:
    """Digests of `size` bytes that lie one after the other, as a column of binary values of that width."""
    import pyarrow

    return pyarrow.Array.from_buffers(pyarrow.binary(size), len(values) // size, [None, pyarrow.py_buffer(values)])


def texts(values: Sequence[str]) -> pyarrow.Array:
    """Texts as a column."""
    import pyarrow

    encoded = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    buffers = [None, _buffer(ends), pyarrow.py_buffer(b"".join(encoded))]
    return pyarrow.Array.from_buffers(pyarrow.string(), len(encoded), buffers)


def words(values: ArrayLike) -> pyarrow.Array:
    """Texts of which many are equal, (n,), as a column that holds each of them once, in order of appearance."""
    found, first, places = np.unique(np.asarray(values, dtype=np.str_), return_index=True, return_inverse=True)
    by_appearance = np.argsort(first)
    return named(np.argsort(by_appearance)[places], found[by_appearance].tolist())


def named(places: ArrayLike, names: Sequence[str]) -> pyarrow.Array:
    """For each value, (n,), the name at that place of `names`."""
    import pyarrow

    return pyarrow.DictionaryArray.from_arrays(numbers(places, np.int32), texts(names))


def lists(values: ArrayLike, lengths: ArrayLike, dtype: DTypeLike) -> pyarrow.Array:
    """Numbers that lie one after the other, cut into lists of `lengths`, (n,)."""
    import pyarrow

    starts = np.concatenate([[0], np.cumsum(lengths)])
    return pyarrow.ListArray.from_arrays(numbers(starts, np.int32), numbers(values, dtype))


def _buffer(array: NDArray[Any]) -> pyarrow.Buffer:
    import pyarrow

    return pyarrow.py_buffer(array.view(np.uint8) if array.size else b"")
