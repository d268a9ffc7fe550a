"""A curriculum turned into the sample ids of a whole run.

Each phase takes whole batches: ceil(epochs * n / batch_size) of them, the last filled up from the phase's own next
epoch. Inserted samples are left out of every phase, and take the last free slots of their batches; what stood there is
not read at that place, so all other slots are those of the same curriculum with other insertions of as many samples.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.order import metrics
from wellread.order.curriculum import Curriculum, Insertion, Phase, Pool
from wellread.order.permutation import Order, steps_of
from wellread.order.select import choose, read_ids


@dataclass(frozen=True)
class Arranged:
    """What a curriculum reads."""

    ids: NDArray[np.int64]
    """Sample ids of the whole run, batch after batch."""
    phases: list[dict[str, str | int]]
    """`name`, `order`, and the batches `start` … `stop` - 1 of each phase."""
    inserted: list[tuple[str, int]]
    """Tag of each insertion's slot, and its index in `ids`."""
    source: str
    """sha256 of the curriculum and of every metric and file that it names."""


def arrange(curriculum: Curriculum, corpus: Corpus, *, seed: int, batch_size: int) -> Arranged:
    """Turn a curriculum into ids.

    Raises
    ------
    UserError
        When a phase or an insertion asks for what is not there; names its place in the file.
    """
    used: list[str] = [curriculum.sha256]
    found = [_insertion_ids(insertion, corpus, used) for insertion in curriculum.insertions]
    free = np.ones(corpus.n_trainable, dtype=np.bool_)
    for insertion, ids in zip(curriculum.insertions, found, strict=True):
        if not free[ids].all():
            raise UserError(f"{insertion.place}: sample {ids[~free[ids]][0]} is part of an earlier insertion, too")
        free[ids] = False
    parts: list[NDArray[np.int64]] = []
    phases: list[dict[str, str | int]] = []
    start = 0
    for number, phase in enumerate(curriculum.phases):
        batches = _phase_batches(phase, corpus, free, _phase_seed(seed, number), batch_size, used)
        parts.append(batches.ravel())
        name = phase.name or f"phase {number}"
        order = ":".join(filter(None, (phase.spec.kind, phase.spec.by)))
        phases.append({"name": name, "order": order, "start": start, "stop": start + len(batches)})
        start += len(batches)
    ids = np.concatenate(parts)
    inserted = _insert(ids.reshape(-1, batch_size), curriculum.insertions, found)
    return Arranged(ids, phases, inserted, hashlib.sha256("\n".join(used).encode()).hexdigest())


def steps_before_corpus(curriculum: Curriculum, trainable: int, batch_size: int) -> int:
    """Steps of a curriculum without a corpus: a phase that has epochs and chooses samples may turn out shorter."""
    return sum(_steps(phase, trainable, batch_size) for phase in curriculum.phases)


def _steps(phase: Phase, n: int, batch_size: int) -> int:
    if phase.steps is not None:
        return phase.steps
    return steps_of(phase.epochs or 1, n, batch_size)


def _phase_seed(seed: int, number: int) -> int:
    """Phases with the same samples are shuffled apart."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0])


def _phase_batches(
    phase: Phase, corpus: Corpus, free: NDArray[np.bool_], seed: int, batch_size: int, used: list[str]
) -> NDArray[np.int64]:
    """Sample ids of a phase, int64[steps, batch_size]."""
    chosen = choose(phase.spec, corpus, phase.place, free & _mask(phase.pool, corpus, phase.place, used))
    used.append(chosen.source)
    order = Order(kind=chosen.passes, seed=seed, n=len(chosen.ids), batch_size=batch_size)
    return chosen.ids[order.batches(0, _steps(phase, len(chosen.ids), batch_size))]


def _mask(pool: Pool, corpus: Corpus, place: str, used: list[str]) -> NDArray[np.bool_]:
    """Which trainable samples are of a pool, bool[n_trainable]."""
    mask = np.ones(corpus.n_trainable, dtype=np.bool_)
    for condition in pool.where:
        values = metrics.column(corpus, condition.metric, f"{place}.where")
        used.append(metrics.digest(values))
        mask &= condition.holds(values)
    for name in pool.sets:
        if name not in corpus.set_names:
            raise UserError(f"{place}.sets: no set {name!r}; this corpus is made of {', '.join(corpus.set_names)}")
    if pool.sets:
        numbers = corpus.sets(np.arange(corpus.n_trainable))
        mask &= np.isin(numbers, [corpus.set_names.index(name) for name in pool.sets])
    return mask


def _insertion_ids(insertion: Insertion, corpus: Corpus, used: list[str]) -> NDArray[np.int64]:
    if insertion.path:
        ids, source = read_ids(Path(insertion.path), corpus, f"{insertion.place}.file")
        used.append(source)
        return ids
    if not insertion.samples:
        ids = np.flatnonzero(_mask(insertion.pool, corpus, insertion.place, used))
        if not len(ids):
            raise UserError(f"{insertion.place}: no trainable sample is of that kind")
        return ids
    for sample, times in Counter(insertion.samples).items():
        if sample >= corpus.n_trainable:
            what = f"sample {sample} is sealed" if sample < corpus.n else f"there is no sample {sample}"
            raise UserError(f"{insertion.place}.samples: {what}; choose ids 0 … {corpus.n_trainable - 1}")
        if times > 1:
            raise UserError(
                f"{insertion.place}.samples: sample {sample} is named twice; it is read at each batch of at"
            )
    return np.array(insertion.samples, dtype=np.int64)


def _insert(
    batches: NDArray[np.int64], insertions: tuple[Insertion, ...], found: list[NDArray[np.int64]]
) -> list[tuple[str, int]]:
    """Put the insertions into `batches`, int64[steps, batch_size]; return tag and index of each slot taken."""
    steps, batch_size = batches.shape
    taken: Counter[int] = Counter()
    inserted: list[tuple[str, int]] = []
    for insertion, ids in zip(insertions, found, strict=True):
        slots = insertion.slots or len(ids)
        for number, batch_id in enumerate(insertion.at):
            if batch_id >= steps:
                raise UserError(f"{insertion.place}.at: no batch {batch_id}; the curriculum has 0 … {steps - 1}")
            if taken[batch_id] + slots > batch_size:
                raise UserError(
                    f"{insertion.place}: batch {batch_id} has {batch_size - taken[batch_id]} slots left of its "
                    f"{batch_size}, not {slots}; set slots, or other batches"
                )
            stop = batch_size - taken[batch_id]
            batches[batch_id, stop - slots : stop] = np.take(ids, number * slots + np.arange(slots), mode="wrap")
            taken[batch_id] += slots
            inserted += [(insertion.tag, batch_id * batch_size + slot) for slot in range(stop - slots, stop)]
    return inserted
