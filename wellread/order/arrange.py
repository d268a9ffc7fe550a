"""Turn a curriculum into the sample ids of a complete run.

Each phase has ceil(epochs * n / batch_size) complete batches; the last one is filled from the phase's next epoch.
Inserted samples are excluded from all phases and replace the samples in the last free slots of their batches. So
inserting the same samples into other batches, or more often, changes no other slot.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wellread.corpus.canaries import TAG
from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.order import metrics
from wellread.order.curriculum import Curriculum, Insertion, Phase, Pool
from wellread.order.permutation import Order, steps_of
from wellread.order.select import choose, read_ids


@dataclass(frozen=True)
class Arranged:
    """The samples that a curriculum reads."""

    ids: NDArray[np.int64]
    """Sample ids of the complete run, in order of batches and slots."""
    phases: list[dict[str, str | int]]
    """`name`, `order`, and the batches `start` … `stop` - 1 of each phase."""
    inserted: list[tuple[str, int]]
    """For each slot with an inserted sample the insertion's tag and the slot's index in `ids`."""
    source: str
    """sha256 of the curriculum and of all metrics and files that it names."""


def arrange(curriculum: Curriculum, corpus: Corpus, *, seed: int, batch_size: int) -> Arranged:
    """Turn a curriculum into sample ids.

    Raises
    ------
    UserError
        When a phase or an insertion cannot be satisfied; names its place in the file.
    """
    used: list[str] = [curriculum.sha256]
    for insertion in curriculum.insertions if corpus.canaries else ():
        if insertion.tag.startswith(TAG):
            raise UserError(f"{insertion.place}.tag: {insertion.tag!r} is a tag of --canaries; choose another")
    inserted_ids = [_insertion_ids(insertion, corpus, used) for insertion in curriculum.insertions]
    free = np.ones(corpus.n_ordinary, dtype=np.bool_)
    for insertion, ids in zip(curriculum.insertions, inserted_ids, strict=True):
        if not free[ids].all():
            raise UserError(f"{insertion.place}: sample {ids[~free[ids]][0]} is already part of an earlier insertion")
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
    inserted = _insert(ids.reshape(-1, batch_size), curriculum.insertions, inserted_ids)
    return Arranged(ids, phases, inserted, hashlib.sha256("\n".join(used).encode()).hexdigest())


def steps_before_corpus(curriculum: Curriculum, trainable: int, batch_size: int) -> int:
    """Upper bound of a curriculum's steps before the corpus exists: phases with epochs may select fewer samples."""
    return sum(_steps(phase, trainable, batch_size) for phase in curriculum.phases)


def _steps(phase: Phase, n: int, batch_size: int) -> int:
    if phase.steps is not None:
        return phase.steps
    return steps_of(phase.epochs or 1, n, batch_size)


def _phase_seed(seed: int, number: int) -> int:
    """Seed of a phase: phases with the same samples are shuffled differently."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0])


def _phase_batches(
    phase: Phase, corpus: Corpus, free: NDArray[np.bool_], seed: int, batch_size: int, used: list[str]
) -> NDArray[np.int64]:
    """Sample ids of a phase, int64[steps, batch_size]."""
    choice = choose(phase.spec, corpus, phase.place, free & _mask(phase.pool, corpus, phase.place, used))
    used.append(choice.source)
    order = Order(kind=choice.passes, seed=seed, n=len(choice.ids), batch_size=batch_size)
    return choice.ids[order.batches(0, _steps(phase, len(choice.ids), batch_size))]


def _mask(pool: Pool, corpus: Corpus, place: str, used: list[str]) -> NDArray[np.bool_]:
    """Mask of the trainable samples in a pool, bool[n_ordinary]."""
    mask = np.ones(corpus.n_ordinary, dtype=np.bool_)
    for condition in pool.where:
        values = metrics.column(corpus, condition.metric, f"{place}.where")
        used.append(metrics.digest(values))
        mask &= condition.holds(values)
    for name in pool.sets:
        if name not in corpus.set_names:
            raise UserError(f"{place}.sets: no data set {name!r}; this corpus has {', '.join(corpus.set_names)}")
    if pool.sets:
        numbers = corpus.sets(np.arange(corpus.n_ordinary))
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
            raise UserError(f"{insertion.place}: no trainable sample matches its where and sets")
        return ids
    for sample, times in Counter(insertion.samples).items():
        if sample >= corpus.n_ordinary:
            what = corpus.why_not(sample)
            raise UserError(f"{insertion.place}.samples: {what}; choose ids 0 … {corpus.n_ordinary - 1}")
        if times > 1:
            raise UserError(
                f"{insertion.place}.samples: sample {sample} is listed twice; list it once, each batch of at reads it"
            )
    return np.array(insertion.samples, dtype=np.int64)


def _insert(
    batches: NDArray[np.int64], insertions: tuple[Insertion, ...], sample_ids: list[NDArray[np.int64]]
) -> list[tuple[str, int]]:
    """Write the insertions into `batches`, int64[steps, batch_size]; return tag and index of each replaced slot."""
    steps, batch_size = batches.shape
    slots_taken: Counter[int] = Counter()
    inserted: list[tuple[str, int]] = []
    for insertion, ids in zip(insertions, sample_ids, strict=True):
        slots = insertion.slots or len(ids)
        for number, batch_id in enumerate(insertion.at):
            if batch_id >= steps:
                raise UserError(f"{insertion.place}.at: no batch {batch_id}; the curriculum has 0 … {steps - 1}")
            if slots_taken[batch_id] + slots > batch_size:
                raise UserError(
                    f"{insertion.place}: batch {batch_id} has {batch_size - slots_taken[batch_id]} free slots of "
                    f"{batch_size}, but needs {slots}; lower slots, or choose other batches"
                )
            stop = batch_size - slots_taken[batch_id]
            batches[batch_id, stop - slots : stop] = np.take(ids, number * slots + np.arange(slots), mode="wrap")
            slots_taken[batch_id] += slots
            inserted += [(insertion.tag, batch_id * batch_size + slot) for slot in range(stop - slots, stop)]
    return inserted
