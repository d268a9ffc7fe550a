"""Which samples of a run were read at random times: the condition of `unread` as a control, and of the order test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.separation import Ints

if TYPE_CHECKING:
    from wellread.run import RunDirectory

NOTES = {"phases": [{"name": str, "order": str, "start": int, "stop": int}], "inserted": [{"sample_id": int}]}
"""Shape of order.json, as far as it is needed."""


@dataclass(frozen=True)
class Randomness:
    """The random parts of an order.

    An order that shuffles, also one over a selection or a list, is random in each epoch. Of a curriculum, the phases
    that shuffle are; samples of insertions are not, since they were selected and have their own batches. With canaries,
    neither are the samples that they displace.
    """

    kind: str
    """Kind of the order: shuffle, sorted, …"""
    phases: Ints
    """Batches [start, stop) of the random ranges, int64[ranges, 2]."""
    selected: Ints
    """Samples that insertions read or displace, ascending; they are in no comparison that needs a random time."""
    is_one_draw: bool
    """Whether all batches are drawn from the same samples, so that what is read later differs only by chance."""

    @classmethod
    def of(cls, run: RunDirectory) -> Randomness:
        """The random parts of the order of a run, from its manifest and order.json."""
        from wellread.files import read_json
        from wellread.order.inserted import InsertedOrder
        from wellread.order.store import open_order

        identity: dict[str, Any] = run.manifest()["identity"]
        order, every = identity["order"], np.array([[0, np.iinfo(np.int64).max]])
        has_notes = order["kind"] == "curriculum" or "inserted" in order
        notes = read_json(run.order_notes, NOTES) if has_notes else {"phases": [], "inserted": []}
        selected = np.unique(np.array([each["sample_id"] for each in notes["inserted"]], dtype=np.int64))
        if isinstance(opened := open_order(run) if "inserted" in order else None, InsertedOrder):
            selected = np.union1d(selected, opened.displaced())
        if order.get("pass", order["kind"]) == "shuffle":
            return cls(order["kind"], every, selected, True)
        random = [each for each in notes["phases"] if each["order"].partition(":")[0] in ("shuffle", "filter")]
        phases = np.array([[each["start"], each["stop"]] for each in random], dtype=np.int64).reshape(-1, 2)
        return cls(order["kind"], phases, selected, len(random) == len(notes["phases"]) == 1)

    def why_not(self, needs_one_draw: bool = False) -> str:
        """Why the order gives no random times; empty if it does.

        Parameters
        ----------
        needs_one_draw
            Whether what is read in one batch is compared with what is read in any other.
        """
        if not self.phases.size:
            return f"the order is {self.kind}, so samples that are read later differ from those read earlier"
        if needs_one_draw and not self.is_one_draw:
            return "the curriculum has several phases, and the samples of a later one may differ from those read"
        return ""

    @classmethod
    def why_no_control(cls, run: RunDirectory) -> str:
        """Why samples that a run reads later are not a control; empty if they are, or if there is no manifest yet."""
        return cls.of(run).why_not(needs_one_draw=True) if run.manifest_file.exists() else ""

    def phase_of(self, batches: Ints) -> Ints:
        """Number of the random range that contains each batch, -1 for none; same shape."""
        phases = np.full(batches.shape, -1, dtype=np.int64)
        for number, (start, stop) in enumerate(self.phases.tolist()):
            phases[(batches >= start) & (batches < stop)] = number
        return phases
