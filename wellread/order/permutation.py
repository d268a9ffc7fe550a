"""The order: a function from (batch, slot) to a sample id, and its inverse.

Position p = batch_id * batch_size + slot is number p % n of epoch p // n. ``sequential`` has index p % n there.
``shuffle`` has a permutation of it, keyed by seed and epoch. The permutation and its inverse are computed, not stored,
and take constant time for runs of any length. An index is a sample id; in a listed order it is an index into its list
of ids (`wellread.order.build`).
The order does not depend on the number of ranks: ranks and micro-batches only divide the slots of a batch.

The permutation is a Feistel network (Luby & Rackoff 1988, "How to construct pseudorandom permutations") in the form of
Black & Rogaway 2002, "Ciphers with arbitrary finite domains": a value is two digits in Z_a x Z_b, rounds alternately
add to one of them, and values at n or above are mapped again (cycle walking). Since a * b - n < a, almost no value is
mapped again; over 2^ceil(log2 n) values up to half would be. It is for shuffling, not for secrecy.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from wellread.errors import UserError
from wellread.files import release

Kind = Literal["shuffle", "sequential"]

VERSION = 1  # of the function: increase it with any change to the ids of an order
MAX_SAMPLES = 2**40  # a digit times 32 bits is then far below 2^64
CHUNK = 16_384  # positions processed at once: five buffers of 128 KiB fit into the cache of a core
SORTED_AT_MOST = 1 << 25  # ids of a list that are sorted to look samples up; the ids of a longer one are scanned
SCANNED_AT_ONCE = 1 << 22
# Small n needs the most rounds. With ideal round functions, 24 rounds bring the permutations of n samples this close
# to uniform (exact total variation distance): 8e-8 for n <= 4, 5e-4 for n = 5 and 6, 4e-3 for n = 8.
ROUNDS = 24

_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # this and the next two: splitmix64, Steele, Lea & Flood 2014
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_HALF = np.uint64(32)


@dataclass(frozen=True, kw_only=True)
class Order:
    """The function (batch, slot) -> sample, and its inverse.

    Raises
    ------
    UserError
        When a field is out of its range.
    """

    kind: Kind
    """`shuffle`: a new permutation each epoch; `sequential`: the order of the corpus, the same in each epoch."""
    seed: int
    """Key of the shuffle, 0 <= seed < 2^64."""
    n: int
    """Number of trainable samples, 1 <= n <= 2^40."""
    batch_size: int
    """Samples per batch, over all ranks and gradient accumulation; at least 1."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UserError(f"order kind is {self.kind!r}; choose one of {', '.join(get_args(Kind))}")
        if not 0 <= self.seed < 2**64:
            raise UserError(f"order seed is {self.seed}; choose 0 <= seed < 2^64")
        if not 1 <= self.n <= MAX_SAMPLES:
            raise UserError(f"order has n = {self.n} samples; use a corpus with 1 to 2^40 trainable samples")
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}; choose at least 1")

    def batch(self, batch_id: int) -> NDArray[np.int64]:
        """Sample ids of one batch in slot order, int64[batch_size]; ValueError when `batch_id` is negative."""
        return self.batches(batch_id, batch_id + 1).ravel()

    def batches(self, start: int, stop: int) -> NDArray[np.int64]:
        """Sample ids of the batches start ... stop - 1.

        Returns
        -------
        int64[stop - start, batch_size]
            One row per batch, in slot order.

        Raises
        ------
        UserError
            Unless 0 <= start <= stop.
        """
        if not 0 <= start <= stop:
            raise UserError(f"batches {start} to {stop} are not a range; choose 0 <= start <= stop")
        positions = np.arange(start * self.batch_size, stop * self.batch_size, dtype=np.int64)
        return self.samples(positions).reshape(stop - start, self.batch_size)

    def samples(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sample ids read at `positions`, which may span epochs; int64, same shape; ValueError when one is negative."""
        return self.indices(positions)

    def indices(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices 0 ... n - 1 at `positions`; int64, same shape; ValueError when a position is negative."""
        indices = np.empty(np.shape(positions), dtype=np.int64)
        for position, index in _chunks(positions, indices):
            epoch = self._epochs(position)
            within = position - epoch * self.n
            index[...] = within if self.kind == "sequential" else _permute(within, epoch, self.seed, self.n)
        return indices

    def epochs(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Epoch of each position; int64, same shape; ValueError when one is negative."""
        return self._epochs(np.asarray(positions))

    def positions(self, indices: NDArray[np.int64] | int, epoch: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """Positions of indices in the given epochs: the inverse of `indices`.

        Parameters
        ----------
        indices, epoch
            Integers, broadcast against each other. Without a list an index is a sample id.

        Returns
        -------
        int64
            Positions, in the broadcast shape.

        Raises
        ------
        UserError
            When an index is outside 0 ... n - 1 or an epoch is negative.
        """
        positions = np.empty(np.broadcast_shapes(np.shape(indices), np.shape(epoch)), dtype=np.int64)
        for index, e, position in _chunks(indices, epoch, positions):
            outside = (index < 0) | (index >= self.n)
            if outside.any():
                raise UserError(f"sample {index[outside][0]} is not in the order; choose 0 to {self.n - 1}")
            if e.min() < 0:
                raise UserError(f"epoch {e.min()} is negative; epochs count from 0")
            within = index if self.kind == "sequential" else _permute(index, e, self.seed, self.n, inverse=True)
            position[...] = e * self.n + within
        return positions

    def places(self, sample_id: int) -> NDArray[np.int64]:
        """Indices of a sample, int64[readings per pass], ascending."""
        return np.array([sample_id], dtype=np.int64)

    def locate(self, sample_id: int, *, batches: int) -> list[tuple[int, int]]:
        """All readings of a sample in batches 0 ... batches - 1, in reading order, computed without a search.

        Returns
        -------
        list of (batch_id, slot)
            One per epoch (the last epoch may end before the sample). In a listed order: one for each time that the list
            contains the sample.

        Raises
        ------
        UserError
            When `batches` is negative or, without a list, the sample id is outside 0 ... n - 1.
        """
        if batches < 0:
            raise UserError(f"batches is {batches}; choose 0 or more")
        end = batches * self.batch_size
        epochs = np.arange(max(1, -(-end // self.n)), dtype=np.int64)
        positions = np.sort(self.positions(self.places(sample_id)[:, None], epochs), axis=None)
        return [divmod(p, self.batch_size) for p in positions[positions < end].tolist()]

    def release(self) -> None:
        """Give back the memory of its mapped files; only listed orders have one."""

    def steps(self, epochs: float) -> int:
        """Number of steps that read `epochs` epochs: see `steps_of`."""
        return steps_of(epochs, self.n, self.batch_size)

    def identity(self) -> dict[str, int | str]:
        """What defines the order, for JSON: orders with equal identities give the same ids in every version."""
        shape = {"n": self.n, "batch_size": self.batch_size}
        return {"kind": self.kind, "seed": self.seed, **shape, "version": VERSION}

    def _epochs(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        if positions.size and positions.min() < 0:
            raise UserError(f"position {positions.min()} is negative; positions count from 0")
        return positions // self.n


@dataclass(frozen=True, kw_only=True)
class ListedOrder(Order):
    """An order over a list of sample ids: index i is sample ids[i], and `n` is the length of the list.

    A list need not contain all samples and may repeat some. `kind` says in which order a pass reads the list.
    """

    ids: NDArray[np.int64] = field(repr=False, compare=False)
    """Sample ids, int64[n]; may be memory-mapped."""
    listed: str
    """Kind of the list: `sorted`, `filter`, `file` or `curriculum`."""
    by: str
    """Metric and direction, or the condition; empty for a file."""
    source: str
    """sha256 of the source of the list: the metric's column, the file of ids, or the curriculum."""
    ids_sha256: str
    """sha256 of the ids as little-endian int64."""

    def samples(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sample ids read at `positions`, which may span epochs; int64, same shape; ValueError when one is negative."""
        return np.asarray(self.ids[self.indices(positions)])

    def places(self, sample_id: int) -> NDArray[np.int64]:
        """Indices of a sample in the list, int64[readings per pass], ascending; empty when the list has none."""
        if len(self.ids) > SORTED_AT_MOST:
            parts = [np.empty(0, np.int64)]
            for start in range(0, len(self.ids), SCANNED_AT_ONCE):
                parts.append(start + np.flatnonzero(self.ids[start : start + SCANNED_AT_ONCE] == sample_id))
                self.release()
            return np.concatenate(parts)
        first, last = np.searchsorted(self.ids, [sample_id, sample_id + 1], sorter=self._by_sample)
        return np.asarray(self._by_sample[first:last])

    def release(self) -> None:
        """Give back the memory of its mapped ids."""
        release(self.ids)

    @cached_property
    def _by_sample(self) -> NDArray[np.int64]:
        return np.argsort(self.ids, kind="stable")

    def identity(self) -> dict[str, int | str]:
        """What defines the order, for JSON: orders with equal identities give the same ids in every version."""
        origin = {"by": self.by, "source": self.source, "ids": self.ids_sha256}
        return super().identity() | {"kind": self.listed, "pass": self.kind, **origin}


def steps_of(epochs: float, n: int, batch_size: int) -> int:
    """Number of steps that read `epochs` epochs of n samples: ceil(epochs * n / batch_size).

    Decimal numbers are exact: 0.1 is one tenth, not the nearest float.

    Raises
    ------
    UserError
        Unless `epochs` is positive and finite.
    """
    if not 0 < epochs < math.inf:
        raise UserError(f"epochs is {epochs}; choose a positive number")
    return math.ceil(Fraction(str(epochs)) * n / batch_size)


def _chunks(*arrays: NDArray[np.int64] | int) -> Iterator[tuple[NDArray[np.int64], ...]]:
    """Iterate over the broadcast arrays in flat int64 chunks of at most CHUNK; the last array is written to."""
    read: list[Literal["readonly", "writeonly"]] = ["readonly"]
    write: list[Literal["readonly", "writeonly"]] = ["writeonly"]
    with np.nditer(
        [np.asarray(array) for array in arrays],
        flags=["external_loop", "buffered", "zerosize_ok"],
        op_flags=[read] * (len(arrays) - 1) + [write],
        op_dtypes=[np.int64] * len(arrays),
        casting="same_kind",
        order="C",
        buffersize=CHUNK,
    ) as chunks:
        yield from chunks


def _permute(
    values: NDArray[np.int64], epochs: NDArray[np.int64], seed: int, n: int, *, inverse: bool = False
) -> NDArray[np.int64]:
    """Map each value below n by the permutation of (seed, its epoch), or by its inverse.

    A value that is mapped to n or above is mapped again until it is below n (cycle walking). In each cycle of a
    permutation of 0 ... a * b - 1 this skips the values from n on, so the result is a permutation of 0 ... n - 1.
    """
    if epochs.min() == epochs.max():
        keys, key_of = _round_keys(seed, epochs[:1]), None
    else:
        distinct, key_of = np.unique(epochs, return_inverse=True)
        keys = _round_keys(seed, distinct)
    a = math.isqrt(n - 1) + 1
    a += a % 2  # even: with a and b odd, every round would be an even permutation, and so would their product
    b = -(-n // a)
    mapped = _feistel(values.astype(np.uint64), keys, key_of, a, b, inverse)
    walking = np.flatnonzero(mapped >= n)
    while walking.size:
        again = _feistel(mapped[walking], keys, None if key_of is None else key_of[walking], a, b, inverse)
        mapped[walking] = again
        walking = walking[again >= n]
    return mapped.astype(np.int64)


def _feistel(
    values: NDArray[np.uint64], keys: NDArray[np.uint64], key_of: NDArray[np.intp] | None, a: int, b: int, inverse: bool
) -> NDArray[np.uint64]:
    """Permute 0 ... a * b - 1: value = high * b + low; each round adds a keyed hash of one digit to the other.

    `keys` is uint64[ROUNDS, epochs]; `key_of` is the index of each value's epoch in it (None: 0 for all values).
    """
    size_a, size_b = np.uint64(a), np.uint64(b)
    high = values // size_b
    low = values - high * size_b
    hashed, spare = np.empty_like(values), np.empty_like(values)
    for i in reversed(range(ROUNDS)) if inverse else range(ROUNDS):
        source, target, size = (high, low, size_b) if i % 2 else (low, high, size_a)
        # The hash: multiply-xorshift of digit and key; its top 32 bits, which are mixed best, are scaled to
        # 0 ... size - 1.
        np.bitwise_xor(source, keys[i, 0] if key_of is None else keys[i].take(key_of), out=hashed)
        np.multiply(hashed, _MIX_1, out=hashed)
        np.right_shift(hashed, _HALF, out=spare)
        np.bitwise_xor(hashed, spare, out=hashed)
        np.multiply(hashed, _MIX_2, out=hashed)
        np.right_shift(hashed, _HALF, out=hashed)
        np.multiply(hashed, size, out=hashed)
        np.right_shift(hashed, _HALF, out=hashed)
        # Modulo size without a division: the smaller of target and target -/+ size, since -1 wraps to 2^64 - 1.
        add, wrap = (np.subtract, np.add) if inverse else (np.add, np.subtract)
        add(target, hashed, out=target)
        wrap(target, size, out=spare)
        np.minimum(target, spare, out=target)
    return high * size_b + low


def _round_keys(seed: int, epochs: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Keys of all rounds for each epoch, uint64[ROUNDS, epochs]."""
    epoch_keys = _splitmix64(_splitmix64(np.array([seed], dtype=np.uint64)) ^ epochs.astype(np.uint64))
    return _splitmix64(epoch_keys + np.arange(ROUNDS, dtype=np.uint64)[:, None])


def _splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Bijective hash of 64-bit values: the output function of splitmix64."""
    x = x + _GAMMA
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))
