import dataclasses
import functools
import itertools
import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from wellread.errors import UserError
from wellread.order.permutation import CHUNK, MAX_SAMPLES, Order

Ids = NDArray[np.int64]

seeds = st.integers(0, 2**64 - 1)
kinds = st.sampled_from(["shuffle", "sequential"])


def shuffle(n: int, *, seed: int = 0, batch_size: int = 16) -> Order:
    return Order(kind="shuffle", seed=seed, n=n, batch_size=batch_size)


def epoch_ids(order: Order, epochs: int) -> Ids:
    """Sample ids of the first epochs, one row each."""
    return order.samples(np.arange(epochs * order.n)).reshape(epochs, order.n)


@functools.cache
def first_epochs(n: int, seeds: int) -> Ids:
    """Sample ids of the first epoch under the first seeds, one row each."""
    return np.array([shuffle(n, seed=seed).samples(np.arange(n)) for seed in range(seeds)])


def assert_each_once(ids: Ids) -> None:
    assert np.array_equal(np.sort(ids, axis=1), np.broadcast_to(np.arange(ids.shape[1]), ids.shape))


# --- what must never change ---

GOLDEN = {
    (0, 1000, 0): [522, 493, 505, 452, 668, 670, 384, 449, 758, 391, 950, 833, 256, 120, 485, 841],
    (1, 1000, 3): [816, 276, 753, 562, 438, 582, 61, 316, 259, 885, 920, 529, 95, 664, 756, 564],
    (2**64 - 1, 2**40, 3): [
        442277535502, 1023786316381, 379709219636, 108791506790, 188382079109, 158028282134, 414005172435, 459969807630,
        377164371245, 203797627761, 600702202019, 1069693249436, 752034382544, 338023122353, 593141922142, 356299546550,
    ],
}  # fmt: skip


@pytest.mark.parametrize(("seed", "n", "epoch"), GOLDEN)
def test_ids_never_change(seed: int, n: int, epoch: int) -> None:
    ids = shuffle(n, seed=seed).samples(epoch * n + np.arange(16)).tolist()
    assert ids == GOLDEN[seed, n, epoch], "all records refer to these ids: increase VERSION, do not edit them"


def test_the_identity_is_json_and_defines_the_order() -> None:
    identity = {"kind": "shuffle", "seed": 7, "n": 1000, "batch_size": 16, "version": 1}
    assert json.loads(json.dumps(shuffle(1000, seed=7).identity())) == identity


# --- each epoch reads each sample once ---


@pytest.mark.parametrize("n", range(1, 301))
def test_each_small_epoch_reads_each_sample_once(n: int) -> None:
    order = shuffle(n)
    ids = epoch_ids(order, 3)
    assert_each_once(ids)
    assert np.array_equal(order.positions(ids, np.arange(3)[:, None]), np.arange(3 * n).reshape(3, n))


@settings(max_examples=25, deadline=None)
@given(n=st.integers(301, 200_000), seed=seeds)
def test_each_large_epoch_reads_each_sample_once(n: int, seed: int) -> None:
    assert_each_once(epoch_ids(shuffle(n, seed=seed), 2))


@settings(max_examples=100, deadline=None)
@given(kind=kinds, n=st.integers(1, MAX_SAMPLES), seed=seeds, data=st.data())
def test_inverse(kind: Any, n: int, seed: int, data: st.DataObject) -> None:
    order = Order(kind=kind, seed=seed, n=n, batch_size=8)
    positions = np.array(data.draw(st.lists(st.integers(0, 1000 * n - 1), max_size=50)), dtype=np.int64)
    ids = order.samples(positions)
    assert ids.dtype == np.int64
    assert np.all((ids >= 0) & (ids < n))
    assert np.array_equal(order.epochs(positions), positions // n)
    assert np.array_equal(order.positions(ids, order.epochs(positions)), positions)


@settings(max_examples=50, deadline=None)
@given(kind=kinds, n=st.integers(1, 400), batch_size=st.integers(1, 50), batches=st.integers(0, 60), seed=seeds)
def test_locate_finds_what_a_scan_finds(kind: Any, n: int, batch_size: int, batches: int, seed: int) -> None:
    order = Order(kind=kind, seed=seed, n=n, batch_size=batch_size)
    read = order.batches(0, batches)
    for sample_id in {0, n // 2, n - 1}:
        scan = [tuple(reading) for reading in np.argwhere(read == sample_id).tolist()]
        assert order.locate(sample_id, batches=batches) == scan


def test_sequential_repeats_the_corpus() -> None:
    order = Order(kind="sequential", seed=0, n=5, batch_size=3)
    assert order.batches(0, 4).tolist() == [[0, 1, 2], [3, 4, 0], [1, 2, 3], [4, 0, 1]]


# --- batches ---


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 5000), start=st.integers(0, 40), count=st.integers(0, 40), batch_size=st.integers(1, 200))
def test_batches_equal_single_batches(n: int, start: int, count: int, batch_size: int) -> None:
    order = shuffle(n, batch_size=batch_size)
    read = order.batches(start, start + count)
    assert read.shape == (count, batch_size)
    for row, batch_id in enumerate(range(start, start + count)):
        assert np.array_equal(read[row], order.batch(batch_id))
    one_by_one = shuffle(n, batch_size=1).batches(start * batch_size, (start + count) * batch_size)
    assert np.array_equal(read.ravel(), one_by_one.ravel())


def test_the_last_batch_is_filled_from_the_next_epoch() -> None:
    order = shuffle(10, batch_size=4)
    first, second = epoch_ids(order, 2)
    assert order.batch(2).tolist() == [*first[8:], *second[:2]]


def test_results_do_not_depend_on_chunks() -> None:
    order = shuffle(CHUNK + 7)
    positions = np.random.default_rng(0).integers(0, 50 * order.n, size=(3, CHUNK))
    ids = order.samples(positions)
    assert ids.shape == positions.shape
    assert ids[:, ::997].tolist() == [[int(order.samples(np.array(p))) for p in row] for row in positions[:, ::997]]
    assert np.array_equal(order.samples(positions.T), ids.T)


def test_positions_broadcasts() -> None:
    order = shuffle(100)
    table = order.positions(np.arange(100), np.arange(4)[:, None])
    assert table.shape == (4, 100)
    assert table[2, 31] == order.positions(31, 2)
    assert order.positions(np.arange(0), 3).shape == (0,)


def test_memory_is_bounded_by_the_chunk() -> None:
    order, positions = shuffle(1_000_003), np.arange(2_000_000)
    tracemalloc.start()
    ids = order.samples(positions)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - ids.nbytes < 24 * CHUNK * 8


# --- steps ---


@pytest.mark.parametrize(
    ("epochs", "n", "batch_size", "steps"),
    [
        (1, 10, 4, 3),
        (2, 10, 4, 5),
        (0.1, 10, 1, 1),  # as floats 0.1 + 2e-17 would give 2
        (1.1, 10, 1, 11),
        (0.7, 10, 7, 1),
        (3, 12_000, 128, 282),
        (3, 2**40 - 1, 1, 3 * 2**40 - 3),
        (1e-5, 300_000, 1, 3),
        (1e-9, 10, 4, 1),
    ],
)
def test_steps(epochs: float, n: int, batch_size: int, steps: int) -> None:
    assert shuffle(n, batch_size=batch_size).steps(epochs) == steps


@given(epochs=st.integers(1, 100), n=st.integers(1, MAX_SAMPLES), batch_size=st.integers(1, 10_000))
def test_steps_of_whole_epochs(epochs: int, n: int, batch_size: int) -> None:
    steps = shuffle(n, batch_size=batch_size).steps(float(epochs))
    assert (steps - 1) * batch_size < epochs * n <= steps * batch_size


# --- bad input ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "random"}, "order kind is 'random'; choose one of shuffle, sequential"),
        ({"seed": -1}, "order seed is -1; choose 0 <= seed < 2\\^64"),
        ({"seed": 2**64}, "order seed is 18446744073709551616"),
        ({"n": 0}, "order has n = 0 samples; use a corpus with 1 to"),
        ({"n": 2**40 + 1}, "order has n = 1099511627777 samples"),
        ({"batch_size": 0}, "batch_size is 0; choose at least 1"),
    ],
)
def test_bad_fields_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(shuffle(10), **change)


def test_bad_arguments_are_refused() -> None:
    order = shuffle(10)
    with pytest.raises(UserError, match="batches -1 to 0 are not a range"):
        order.batch(-1)
    with pytest.raises(UserError, match="batches 3 to 2 are not a range"):
        order.batches(3, 2)
    with pytest.raises(UserError, match="position -2 is negative"):
        order.samples(np.array([1, -2]))
    with pytest.raises(UserError, match="position -2 is negative"):
        order.epochs(np.array([1, -2]))
    with pytest.raises(UserError, match="epoch -1 is negative"):
        order.positions(3, -1)
    with pytest.raises(UserError, match="sample 10 is not in the order; choose 0 to 9"):
        order.positions(np.array([9, 10]), 0)
    with pytest.raises(UserError, match="sample 10 is not in the order; choose 0 to 9"):
        order.locate(10, batches=0)
    with pytest.raises(UserError, match="batches is -1"):
        order.locate(0, batches=-1)
    for epochs in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="choose a positive number"):
            order.steps(epochs)


# --- as random as numpy's permutations ---

BUCKETS = 8
EPOCHS = 200
# With a sound shuffle each p value below is uniform on [0, 1], and the seeds are fixed.
P_VALUE = 1e-4


def bucket_chi_square(x: Ids, y: Ids, n: int) -> float:
    cells = (x * BUCKETS // n) * BUCKETS + y * BUCKETS // n
    expected = n / BUCKETS**2
    return float(((np.bincount(cells, minlength=BUCKETS**2) - expected) ** 2).sum() / expected)


def statistics(ids: Ids, previous: Ids) -> dict[str, float]:
    """Statistics in which a structured permutation differs, from one epoch and the previous one."""
    n = len(ids)
    index = np.arange(n)
    return {
        "index bucket to sample bucket": bucket_chi_square(index, ids, n),
        "sample bucket in the epoch before to now": bucket_chi_square(previous, ids, n),
        "successor's bucket": bucket_chi_square(ids[:-1], ids[1:], n),
        "serial correlation": float(np.corrcoef(ids[:-1], ids[1:])[0, 1]),
        "mean displacement": float(np.abs(ids - index).mean() / n),
        "fixed points": float((ids == index).sum()),
        "points fixed since the epoch before": float((ids == previous).sum()),
    }


def assert_like_numpy(permutations: list[Ids], n: int) -> None:
    """Each statistic of successive permutations is distributed as for numpy's permutations (two-sample KS test)."""
    rng = np.random.default_rng(n)
    numpy_permutations = [rng.permutation(n) for _ in permutations]
    own_rows, numpy_rows = (
        [statistics(b, a) for a, b in itertools.pairwise(side)] for side in (permutations, numpy_permutations)
    )
    for name in own_rows[0]:
        samples = [row[name] for row in own_rows], [row[name] for row in numpy_rows]
        assert stats.ks_2samp(*samples, method="asymp").pvalue > P_VALUE, name


@pytest.mark.parametrize("n", [97, 1000, 65_536, 100_003])
def test_epochs_are_distributed_like_numpy_permutations(n: int) -> None:
    assert_like_numpy(list(epoch_ids(shuffle(n, seed=n), EPOCHS + 1)), n)


@pytest.mark.parametrize("n", [97, 1000])
def test_seeds_are_distributed_like_numpy_permutations(n: int) -> None:
    assert_like_numpy(list(first_epochs(n, EPOCHS + 1)), n)


def test_every_sample_is_at_every_index_equally_often() -> None:
    places = np.argsort(first_epochs(10, 2000), axis=1)
    for sample_id in range(10):
        assert stats.chisquare(np.bincount(places[:, sample_id], minlength=10)).pvalue > P_VALUE


def test_every_pair_follows_equally_often() -> None:
    ids = first_epochs(10, 2000)
    for slot in range(9):
        pairs = np.bincount(ids[:, slot] * 10 + ids[:, slot + 1], minlength=100).reshape(10, 10)
        assert not pairs.diagonal().any()
        assert stats.chisquare(pairs[~np.eye(10, dtype=bool)]).pvalue > P_VALUE
        assert stats.binomtest(int(np.tril(pairs).sum()), 2000).pvalue > P_VALUE


@pytest.mark.parametrize(("n", "permutations"), [(2, 2), (3, 6), (4, 24), (5, 120), (6, 720)])
def test_every_permutation_of_a_few_samples_comes_equally_often(n: int, permutations: int) -> None:
    ids = epoch_ids(shuffle(n), 100 * permutations)
    counts = np.unique(ids, axis=0, return_counts=True)[1]
    assert len(counts) == permutations
    assert stats.chisquare(counts).pvalue > P_VALUE


@pytest.mark.parametrize("n", [7, 8, 9, 25, 49])
def test_even_and_odd_permutations_come_equally_often(n: int) -> None:
    ids = epoch_ids(shuffle(n), 5000)
    inversions = sum((ids[:, i, None] > ids[:, i + 1 :]).sum(axis=1) for i in range(n - 1))
    assert stats.binomtest(int((inversions % 2).sum()), 5000).pvalue > P_VALUE


def test_epochs_and_seeds_differ() -> None:
    orders = [epoch_ids(shuffle(1000, seed=seed), 5) for seed in (0, 1, 2**63, 2**64 - 1)]
    assert len({tuple(ids) for rows in orders for ids in rows.tolist()}) == 20
