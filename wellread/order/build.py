"""Build the order of a run from its settings and its corpus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellread.config import ScheduleConfig
from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.order import curriculum as curricula
from wellread.order import metrics
from wellread.order.arrange import Arranged, arrange, steps_before_corpus
from wellread.order.inserted import insert, notes_of
from wellread.order.permutation import Kind, ListedOrder, Order, steps_of
from wellread.order.select import choose, open_ids
from wellread.order.spec import OrderSpec, parse


@dataclass(frozen=True)
class Built:
    """An order and its description."""

    order: Order
    pass_samples: int
    """Samples of one pass; in a control arm those of one pass of the other arm."""
    notes: dict[str, Any] | None = None
    """Of a curriculum, or with canaries: `phases`, and the slots of insertions (docs/formats.md, order.json)."""


def build(config: ScheduleConfig, corpus: Corpus, identity: Mapping[str, Any] | None = None) -> Built:
    """Build the order of the trainable samples of `corpus` that `config` (resolved) requests.

    Parameters
    ----------
    identity : mapping, optional
        Identity of the order of a run that has begun. A control arm that shuffles the complete list, as in older
        versions, continues with it.

    Raises
    ------
    UserError
        When a metric, a file or a curriculum cannot be used, no sample is left, or canaries have no slots.
    """
    built = _without_canaries(config, corpus, identity or {})
    if not corpus.canaries:
        return built
    notes = built.notes or {"version": 1, "control": config.order_control, "phases": [], "inserted": []}
    batch_size, first = built.order.batch_size, corpus.n_ordinary
    reserved = [each["batch_id"] * batch_size + each["slot"] for each in notes["inserted"]]
    order = insert(
        built.order,
        corpus.canaries,
        first,
        steps=_steps(config, built.pass_samples),
        seed=config.seed,
        reserved=np.array(reserved, dtype=np.int64),
    )
    inserted = [*notes["inserted"], *notes_of(order, corpus.canaries, first)]
    inserted.sort(key=lambda each: (each["batch_id"], each["slot"]))
    return Built(order, built.pass_samples, notes | {"inserted": inserted})


def _steps(config: ScheduleConfig, pass_samples: int) -> int:
    return config.steps or steps_of(config.epochs or 1, pass_samples, config.batch_size or 0)


def _without_canaries(config: ScheduleConfig, corpus: Corpus, identity: Mapping[str, Any]) -> Built:
    spec, batch_size = parse(config.order), config.batch_size or 0
    plain: dict[str, Any] = {"seed": config.seed, "batch_size": batch_size}
    where = f"--order {config.order}"
    if spec.kind in ("shuffle", "sequential"):
        kind: Kind = "shuffle" if spec.kind == "shuffle" else "sequential"
        return Built(Order(kind=kind, n=corpus.n_ordinary, **plain), corpus.n_ordinary)
    if spec.kind != "curriculum":
        choice = choose(spec, corpus, where)
        ids = _readings(config, choice.ids, identity) if config.order_control else choice.ids
        order = _listed(spec, ids, _passes(config, choice.passes), choice.source, plain)
        return Built(order, len(choice.ids))
    arranged = arrange(
        curricula.read(Path(spec.path).expanduser(), where), corpus, seed=config.seed, batch_size=batch_size
    )
    if config.steps:
        arranged = _shortened(arranged, config.steps, batch_size, where)
    order = _listed(spec, arranged.ids, _passes(config, "sequential"), arranged.source, plain)
    return Built(order, order.n, _notes(order, arranged, config.order_control))


def _readings(config: ScheduleConfig, ids: NDArray[np.int64], identity: Mapping[str, Any]) -> NDArray[np.int64]:
    """The list of a control arm: all that the other arm reads, whose last pass may end early.

    If it reads complete passes, the list is `ids`: then each pass of the control arm is a shuffle of its own.
    """
    n = _steps(config, len(ids)) * (config.batch_size or 0)
    if n % len(ids) == 0 or identity.get("ids") == metrics.digest(ids):
        return ids
    return np.resize(ids, n)


def _passes(config: ScheduleConfig, kind: Kind) -> Kind:
    """How a pass goes through a list: the control arm reads the same list, shuffled."""
    return "shuffle" if config.order_control else kind


def _listed(spec: OrderSpec, ids: NDArray[np.int64], passes: Kind, source: str, plain: dict[str, Any]) -> ListedOrder:
    origin: dict[str, Any] = {"listed": spec.kind, "by": spec.by, "source": source, "ids_sha256": metrics.digest(ids)}
    return ListedOrder(kind=passes, n=len(ids), ids=ids, **origin, **plain)


def _shortened(arranged: Arranged, steps: int, batch_size: int, where: str) -> Arranged:
    """Only the first `steps` batches; otherwise the control arm would shuffle samples that are not read."""
    n = steps * batch_size
    _check_steps(steps, len(arranged.ids) // batch_size, where)
    phases = [
        phase | {"stop": min(int(phase["stop"]), steps)} for phase in arranged.phases if int(phase["start"]) < steps
    ]
    return replace(
        arranged, ids=arranged.ids[:n], phases=phases, inserted=[at for at in arranged.inserted if at[1] < n]
    )


def _check_steps(steps: int, available: int, where: str) -> None:
    if steps > available:
        raise UserError(f"--steps {steps}: {where} has {available} steps; choose at most {available}, or omit --steps")


def _notes(order: ListedOrder, arranged: Arranged, control: bool) -> dict[str, Any]:
    indices = np.array([index for _, index in arranged.inserted], dtype=np.int64)
    places = zip(arranged.inserted, order.ids[indices].tolist(), order.positions(indices, 0).tolist(), strict=True)
    inserted = [
        {"tag": tag, "sample_id": sample, "batch_id": position // order.batch_size, "slot": position % order.batch_size}
        for (tag, _), sample, position in places
    ]
    inserted.sort(key=lambda row: (row["batch_id"], row["slot"]))
    return {"version": 1, "control": control, "phases": [] if control else arranged.phases, "inserted": inserted}


def samples_before_corpus(config: ScheduleConfig, trainable: int) -> int:
    """Number of samples that one pass of the order reads, before the corpus exists; an upper bound for a filter.

    Raises
    ------
    UserError
        When a file cannot be read, or --steps goes beyond a curriculum.
    """
    spec = parse(config.order)
    where = f"--order {config.order}"
    if spec.kind == "file":
        return len(open_ids(Path(spec.path).expanduser(), where))
    if spec.kind == "curriculum":
        plan, batch_size = curricula.read(Path(spec.path).expanduser(), where), config.batch_size or 0
        steps = steps_before_corpus(plan, trainable, batch_size)
        if all(phase.steps for phase in plan.phases):  # otherwise only the corpus shows the exact number
            _check_steps(config.steps or 0, steps, where)
        return (config.steps or steps) * batch_size
    return trainable
