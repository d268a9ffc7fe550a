"""An order with canaries: another order, in which registered slots read canaries instead of its samples."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.canaries import TAG, Registration
from wellread.errors import UserError
from wellread.order.permutation import ListedOrder, Order

MOST_DISPLACED = 0.1
"""Largest share of readings that canaries may take."""
KEY = int.from_bytes(b"canary", "little")
"""Makes the seed of the draw differ from that of the order."""
PART = 3
"""early and late are this part of the run: a third."""


@dataclass(frozen=True, kw_only=True)
class InsertedOrder(Order):
    """An order `base` in which the samples at some positions are displaced by canaries.

    Its kind, seed and n are those of `base`, which contains no canary.
    """

    base: Order = field(repr=False)
    at: NDArray[np.int64] = field(repr=False, compare=False)
    """Positions that read canaries, ascending, int64[readings]."""
    canaries: NDArray[np.int64] = field(repr=False, compare=False)
    """Sample id at each of these positions, int64[readings]."""
    registered: str
    """Hash of the draw of canaries and controls."""

    @classmethod
    def over(cls, base: Order, at: NDArray[np.int64], canaries: NDArray[np.int64], registered: str) -> InsertedOrder:
        """The order `base` with canaries at the positions `at`, ascending."""
        plain = {name: getattr(base, name) for name in ("kind", "seed", "n", "batch_size")}
        return cls(base=base, at=at, canaries=canaries, registered=registered, **plain)

    def samples(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sample ids read at `positions`; int64, same shape; ValueError when one is negative."""
        samples, places = np.array(self.base.samples(positions)), np.searchsorted(self.at, positions)
        if self.at.size:
            replaced = self.at[np.minimum(places, self.at.size - 1)] == positions
            samples[replaced] = self.canaries[places[replaced]]
        return samples

    def displaced(self) -> NDArray[np.int64]:
        """Samples that are not read where `base` would read them, int64[readings]."""
        return self.base.samples(self.at)

    def places(self, sample_id: int) -> NDArray[np.int64]:
        """Indices of a sample in `base`, int64[readings per pass]."""
        return self.base.places(sample_id)

    def locate(self, sample_id: int, *, batches: int) -> list[tuple[int, int]]:
        """All readings of a sample in batches 0 ... batches - 1, as those of an `Order`."""
        end, places = batches * self.batch_size, self.at[self.canaries == sample_id]
        if places.size or (not isinstance(self.base, ListedOrder) and sample_id >= self.n):  # a canary
            return [divmod(p, self.batch_size) for p in places[places < end].tolist()]
        readings = self.base.locate(sample_id, batches=batches)
        positions = np.array([batch * self.batch_size + slot for batch, slot in readings], dtype=np.int64)
        is_displaced = np.isin(positions, self.at).tolist()
        return [place for place, displaced in zip(readings, is_displaced, strict=True) if not displaced]

    def release(self) -> None:
        """Give back the memory of the mapped files of `base`."""
        self.base.release()

    def identity(self) -> dict[str, int | str]:
        """That of `base`, the registered draw, and a hash of where canaries are read."""
        places = {"canaries": self.registered, "inserted": digest(self.at, self.canaries)}
        return self.base.identity() | places


def plain(order: Order) -> Order:
    """The order without canaries."""
    return order.base if isinstance(order, InsertedOrder) else order


def digest(at: NDArray[np.int64], canaries: NDArray[np.int64]) -> str:
    """sha256 of positions and sample ids, pairs of little-endian int64."""
    return hashlib.sha256(np.stack([at, canaries], axis=1).astype("<i8").tobytes()).hexdigest()


def insert(
    base: Order, registered: Registration, first: int, *, steps: int, seed: int, reserved: NDArray[np.int64]
) -> InsertedOrder:
    """Give each repeat of each canary a slot: its batch is drawn by `seed`, and it takes the last free slot there.

    Parameters
    ----------
    first : int
        Sample id of the first canary.
    reserved : int64[...]
        Positions that are not free: those of other insertions.

    Raises
    ------
    UserError
        As `check`, or when the batches do not have enough free slots.
    """
    check(registered, steps=steps, batch_size=base.batch_size)
    low, high = _batches(registered.at, steps)
    occupied, free = {*reserved.tolist()}, np.full(steps, base.batch_size)
    for batch_id, count in Counter((reserved // base.batch_size).tolist()).items():
        if batch_id < steps:
            free[batch_id] -= count
    doses, pairs = registered.doses, list[tuple[int, int]]()
    for canary in np.argsort(-doses, kind="stable")[: np.count_nonzero(doses)].tolist():
        possible = low + np.flatnonzero(free[low:high])
        if len(possible) < doses[canary]:
            raise UserError(
                f"--canary_repeats {doses[canary]}: only {len(possible)} batches have a free slot, and each repeat is "
                "in another batch; lower --canaries, or raise --batch_size"
            )
        draw = Order(kind="shuffle", seed=seed ^ KEY, n=len(possible), batch_size=1)  # an epoch for each canary
        batch_ids = possible[draw.samples(canary * len(possible) + np.arange(doses[canary]))]
        for batch_id in np.sort(batch_ids).tolist():
            slot = base.batch_size - 1
            while batch_id * base.batch_size + slot in occupied:
                slot -= 1
            occupied.add(batch_id * base.batch_size + slot)
            pairs.append((batch_id * base.batch_size + slot, first + canary))
            free[batch_id] -= 1
    table = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
    return InsertedOrder.over(base, table[:, 0].copy(), table[:, 1].copy(), registered.sha256)


def check(registered: Registration, *, steps: int, batch_size: int) -> float:
    """Return the share of readings that canaries take.

    Raises
    ------
    UserError
        When it is above `MOST_DISPLACED`, or a dose has more repeats than there are batches.
    """
    low, high = _batches(registered.at, steps)
    most, readings, total = max(registered.repeats), int(registered.doses.sum()), steps * batch_size
    if most > high - low:
        where = "the run has" if registered.at == "uniform" else f"--canary_at {registered.at} has"
        raise UserError(
            f"--canary_repeats {most}: {where} only {high - low} batches, and each repeat is in another one; lower it, "
            "or read more batches"
        )
    if readings > MOST_DISPLACED * total:
        raise UserError(
            f"--canaries {registered.per_dose}: {readings:,} readings of canaries would displace "
            f"{readings / total:.1%} of {total:,} samples, at most {MOST_DISPLACED:.0%} are allowed; lower --canaries "
            "or --canary_repeats, or read more batches"
        )
    return readings / total


def _batches(at: str, steps: int) -> tuple[int, int]:
    """First and last batch (excluded) that may read canaries."""
    part = -(-steps // PART)
    return {"uniform": (0, steps), "early": (0, part), "late": (steps - part, steps)}[at]


def notes_of(order: InsertedOrder, registered: Registration, first: int) -> list[dict[str, int | str]]:
    """Where each canary is read, as `inserted` of order.json."""
    doses = registered.doses
    return [
        {
            "tag": f"{TAG}{doses[canary - first]}",
            "sample_id": canary,
            "batch_id": position // order.batch_size,
            "slot": position % order.batch_size,
        }
        for position, canary in zip(order.at.tolist(), order.canaries.tolist(), strict=True)
    ]
