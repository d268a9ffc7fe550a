"""Building an order from what a run asks for and its corpus."""

from __future__ import annotations

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
from wellread.order.permutation import Kind, ListedOrder, Order
from wellread.order.select import choose, open_ids
from wellread.order.spec import OrderSpec, parse


@dataclass(frozen=True)
class Built:
    """An order, and what people want to know of it."""

    order: Order
    notes: dict[str, Any] | None = None
    """Of a curriculum: `phases`, and where the insertions stand (docs/formats.md, order.json)."""


def build(config: ScheduleConfig, corpus: Corpus) -> Built:
    """Build the order that `config` (resolved) asks for over the trainable samples of `corpus`.

    Raises
    ------
    UserError
        When a metric, a file or a curriculum cannot be used, or no sample is left.
    """
    spec, batch_size = parse(config.order), config.batch_size or 0
    plain: dict[str, Any] = {"seed": config.seed, "batch_size": batch_size}
    where = f"--order {config.order}"
    if spec.kind in ("shuffle", "sequential"):
        return Built(Order(kind="shuffle" if spec.kind == "shuffle" else "sequential", n=corpus.n_trainable, **plain))
    if spec.kind != "curriculum":
        chosen = choose(spec, corpus, where)
        return Built(_listed(spec, chosen.ids, _passes(config, chosen.passes), chosen.source, plain))
    arranged = arrange(
        curricula.read(Path(spec.path).expanduser(), where), corpus, seed=config.seed, batch_size=batch_size
    )
    if config.steps:
        arranged = _shortened(arranged, config.steps, batch_size, where)
    order = _listed(spec, arranged.ids, _passes(config, "sequential"), arranged.source, plain)
    return Built(order, _notes(order, arranged, config.order_control))


def _passes(config: ScheduleConfig, kind: Kind) -> Kind:
    """The control arm reads the same list, shuffled."""
    return "shuffle" if config.order_control else kind


def _listed(spec: OrderSpec, ids: NDArray[np.int64], passes: Kind, source: str, plain: dict[str, Any]) -> ListedOrder:
    made: dict[str, Any] = {"listed": spec.kind, "by": spec.by, "source": source, "ids_sha256": metrics.digest(ids)}
    return ListedOrder(kind=passes, n=len(ids), ids=ids, **made, **plain)


def _shortened(arranged: Arranged, steps: int, batch_size: int, where: str) -> Arranged:
    """The first `steps` batches, so that the control arm shuffles what is read and nothing beyond it."""
    n = steps * batch_size
    _check_steps(steps, len(arranged.ids) // batch_size, where)
    phases = [
        phase | {"stop": min(int(phase["stop"]), steps)} for phase in arranged.phases if int(phase["start"]) < steps
    ]
    return replace(
        arranged, ids=arranged.ids[:n], phases=phases, inserted=[at for at in arranged.inserted if at[1] < n]
    )


def _check_steps(steps: int, there: int, where: str) -> None:
    if steps > there:
        raise UserError(f"--steps {steps}: {where} has {there}; choose at most that, or leave --steps out")


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
    """Samples that one pass of the order reads, as far as that is known without a corpus: of a filter, at most.

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
        read, batch_size = curricula.read(Path(spec.path).expanduser(), where), config.batch_size or 0
        there = steps_before_corpus(read, trainable, batch_size)
        if all(phase.steps for phase in read.phases):  # else it is an estimate, and the corpus will tell
            _check_steps(config.steps or 0, there, where)
        return (config.steps or there) * batch_size
    return trainable
