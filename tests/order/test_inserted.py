"""Orders with canaries: which slots they take, what is displaced, and the inverse of the order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wellread.corpus.canaries import Registration
from wellread.errors import UserError
from wellread.order.inserted import InsertedOrder, check, insert, notes_of, plain
from wellread.order.permutation import ListedOrder, Order

NONE = np.zeros(0, dtype=np.int64)


def registration(**changes: Any) -> Registration:
    values: dict[str, Any] = {
        "version": 1, "seed": 0, "text": "random", "per_dose": 2, "repeats": (0, 1, 4), "controls": 19,
        "at": "uniform", "sha256": "ab",
    }  # fmt: skip
    return Registration(**values | changes)


def shuffle(n: int = 300, batch_size: int = 8) -> Order:
    return Order(kind="shuffle", seed=3, n=n, batch_size=batch_size)


def of(base: Order, steps: int, reserved: Any = NONE, seed: int = 0, **changes: Any) -> InsertedOrder:
    return insert(base, registration(**changes), 300, steps=steps, seed=seed, reserved=reserved)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), steps=st.integers(13, 90), at=st.sampled_from(["uniform", "early", "late"]))
def test_each_repeat_has_its_own_batch_and_all_else_stays(seed: int, steps: int, at: str) -> None:
    base = shuffle()
    order = of(base, steps, seed=seed, at=at)
    read, before = order.batches(0, steps), base.batches(0, steps)
    assert [int((read == 300 + i).sum()) for i in range(6)] == [0, 0, 1, 1, 4, 4]
    assert all((read == 300 + i).sum(axis=1).max() <= 1 for i in range(6))
    batches, slots = np.nonzero(read != before)
    assert (read[batches, slots] >= 300).all()
    assert len(batches) == 10
    assert sorted(before[batches, slots].tolist()) == sorted(order.displaced().tolist())
    third = -(-steps // 3)
    low, high = {"uniform": (0, steps), "early": (0, third), "late": (steps - third, steps)}[at]
    assert low <= batches.min() <= batches.max() < high
    for batch_id in set(batches.tolist()):  # the last slots of a batch
        assert sorted(slots[batches == batch_id].tolist()) == list(range(8))[-int((batches == batch_id).sum()) :]


@pytest.mark.parametrize("listed", [False, True])
def test_the_inverse_agrees_with_a_search(listed: bool) -> None:
    base: Order = shuffle()
    if listed:
        ids = np.random.default_rng(0).integers(0, 300, 350)
        base = ListedOrder(
            kind="sequential", seed=0, n=350, batch_size=8, ids=ids, listed="file", by="", source="", ids_sha256="c"
        )
    order, steps = of(base, 80), 80
    read = order.batches(0, steps)
    for sample in range(306):
        assert order.locate(sample, batches=steps) == [(int(b), int(s)) for b, s in np.argwhere(read == sample)]
    assert order.locate(305, batches=0) == []
    assert np.array_equal(order.epochs(np.arange(640)), base.epochs(np.arange(640)))


def test_slots_of_other_insertions_stay() -> None:
    reserved = np.array([8 * b + s for b in range(20) for s in (7, 6)])
    order = of(shuffle(), 20, reserved=reserved)
    assert not np.isin(order.at, reserved).any()
    assert {int(p) % 8 for p in order.at} <= {3, 4, 5}


def test_batches_without_free_slots() -> None:
    reserved = np.arange(8 * 18)  # only batches 18 and 19 are free
    with pytest.raises(UserError, match="--canary_repeats 4: only 2 batches have a free slot"):
        of(shuffle(), 20, reserved=reserved)


def test_batches_are_uniform() -> None:
    """2,000 draws: each of 16 batches within 5 standard errors, a false failure has a probability below 1e-5."""
    counts = np.zeros(16)
    for seed in range(2000):
        order = of(shuffle(), 16, seed=seed, per_dose=1, repeats=(1,))
        counts[order.at // 8] += 1
    assert np.abs(counts - 125).max() < 5 * (2000 * (1 / 16) * (15 / 16)) ** 0.5


def test_identity_and_notes() -> None:
    base = shuffle()
    order, other = of(base, 40), of(base, 40, seed=1)
    identity = order.identity()
    assert {key: identity[key] for key in base.identity()} == base.identity()
    assert identity["canaries"] == "ab"
    assert identity["inserted"] != other.identity()["inserted"]
    assert identity["inserted"] == of(base, 40).identity()["inserted"]
    assert plain(order) is base
    assert plain(base) is base
    notes = notes_of(order, registration(), 300)
    assert [note["tag"] for note in notes if note["sample_id"] == 304] == ["canaries/repeats_4"] * 4
    read = order.batches(0, 40)
    assert all(read[note["batch_id"], note["slot"]] == note["sample_id"] for note in notes)


@pytest.mark.parametrize(
    ("changes", "steps", "message"),
    [
        ({"repeats": (1, 16), "per_dose": 1}, 15, "--canary_repeats 16: the run has only 15 batches"),
        (
            {"repeats": (4,), "per_dose": 1, "at": "early"},
            9,
            "--canary_repeats 4: --canary_at early has only 3 batches, and each repeat is in another one; lower it, or "
            "read more batches",
        ),
        (
            {},
            12,
            "--canaries 2: 10 readings of canaries would displace 10.4% of 96 samples, at most 10% are allowed; lower "
            "--canaries or --canary_repeats, or read more batches",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], steps: int, message: str) -> None:
    with pytest.raises(UserError) as error:
        check(registration(**changes), steps=steps, batch_size=8)
    assert str(error.value).startswith(message)


def test_the_share() -> None:
    assert check(registration(), steps=13, batch_size=8) == 10 / 104
