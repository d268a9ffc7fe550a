"""The history of a run, compared with its record."""

from __future__ import annotations

from typing import Any

from wellread.record.history import History
from wellread.record.reader import Record
from wellread.run import RunDirectory


def test_readings_of_a_sample_equal_the_record(history: History, tiny_run: RunDirectory) -> None:
    table = Record.open(tiny_run.record).table()
    places: dict[int, list[Any]] = {}
    for row in table.to_pylist():
        places.setdefault(row["sample_id"], []).append((row["batch_id"], row["slot"], row["epoch"], row["loss"]))
    assert len(places) > 100
    for sample_id in range(history.order.n):
        readings = [(r.batch_id, r.slot, r.epoch, r.loss) for r in history.sample(sample_id)]
        assert readings == places.get(sample_id, [])
