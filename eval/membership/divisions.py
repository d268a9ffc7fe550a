"""Groups of samples that are compared with sealed ones, by the names of `--groups`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from eval.groups import READ, SEALED, UNREAD, Groups
from eval.separation import Ints

Pair = tuple[str, Ints, Ints]
"""Name of a group, its samples, and the sealed samples that they are compared with."""

AGES = (0, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 20480, 40960, 81920, 163840)
"""Bounds of groups by age: `age:10-20` has the samples with 10 <= age < 20."""
TIMES = (1, 2, 3, 4, 5, 9, 17, 33, 65, 129, 257, 513)
"""Bounds of groups by number of readings: `times:5-8` has the samples that were read 5 to 8 times."""


def _main(name: str) -> Callable[[Groups, int], Iterator[Pair]]:
    def pairs(groups: Groups, step: int) -> Iterator[Pair]:
        at = groups.at(step)
        yield name, at[name], at[SEALED]

    return pairs


def _by_age(groups: Groups, step: int) -> Iterator[Pair]:
    """By steps since the last reading: a sample that the last batch has read has age 1."""
    at = groups.at(step)
    age = step - groups.history(step)[0][at[READ]]
    for low, high in pairwise(AGES):
        yield f"age:{low}-{high}", at[READ][(low <= age) & (age < high)], at[SEALED]


def _by_times(groups: Groups, step: int) -> Iterator[Pair]:
    """By number of readings."""
    at = groups.at(step)
    times = groups.history(step)[1][at[READ]]
    for low, high in zip(TIMES, (*TIMES[1:], None), strict=True):
        last = low if high == low + 1 else "" if high is None else high - 1
        name = f"times:{low}" if last == low else f"times:{low}-{last}"
        yield name, at[READ][(times >= low) & (times < (high or np.inf))], at[SEALED]


def _by_category(groups: Groups, step: int) -> Iterator[Pair]:
    """By data set, or by category where there is only one data set: both sides."""
    at, categories = groups.at(step), np.array(groups.categories())
    for name in np.unique(categories[at[READ]]).tolist():
        members, sealed = (at[side][categories[at[side]] == name] for side in (READ, SEALED))
        yield f"{READ}/{name or 'none'}", members, sealed


DIVISIONS: dict[str, Callable[[Groups, int], Iterator[Pair]]] = {
    READ: _main(READ),
    UNREAD: _main(UNREAD),
    "age": _by_age,
    "times": _by_times,
    "category": _by_category,
}
"""Name in `--groups` -> function that yields the groups at a step."""


def divide(names: Sequence[str], groups: Groups, step: int) -> dict[str, tuple[Ints, Ints]]:
    """Name of each group at `step` -> its samples and the sealed ones to compare them with; without empty groups."""
    pairs = (pair for name in dict.fromkeys(names) for pair in DIVISIONS[name](groups, step))
    return {name: (members, sealed) for name, members, sealed in pairs if members.size and sealed.size}
