"""Which parts of an order are random, from the files of a run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.small_evaluations import make_run

from eval.randomness import Randomness
from wellread.files import write_json


def randomness(path: Path, order: dict[str, Any], notes: dict[str, Any] | None = None) -> Randomness:
    run = make_run(path / "run")
    write_json(run.manifest_file, {"identity": {"order": order}, "attempts": []})
    if notes:
        write_json(run.order_notes, notes)
    return Randomness.of(run)


@pytest.mark.parametrize(
    "order",
    [{"kind": "shuffle"}, {"kind": "filter", "pass": "shuffle"}, {"kind": "sorted", "pass": "shuffle"}],
)
def test_orders_that_shuffle_are_random(tmp_path: Path, order: dict[str, Any]) -> None:
    random = randomness(tmp_path, order)
    assert random.why_not() == random.why_not(needs_one_draw=True) == ""
    assert random.phase_of(np.array([0, 5, 10**9])).tolist() == [0, 0, 0]


@pytest.mark.parametrize("order", [{"kind": "sequential"}, {"kind": "sorted", "pass": "sequential"}])
def test_other_orders_are_not(tmp_path: Path, order: dict[str, Any]) -> None:
    random = randomness(tmp_path, order)
    assert random.why_not().startswith(f"the order is {order['kind']}, so samples that are read later differ")
    assert random.phase_of(np.array([0, 5])).tolist() == [-1, -1]


def phase(order: str, start: int, stop: int) -> dict[str, Any]:
    return {"name": "p", "order": order, "start": start, "stop": stop}


def test_phases_of_a_curriculum_that_shuffle_are_random_and_its_insertions_are_not(tmp_path: Path) -> None:
    phases = [phase("shuffle", 0, 4), phase("sorted:n_tokens:asc", 4, 6), phase("filter:n_tokens>3", 6, 8)]
    notes = {"phases": phases, "inserted": [{"sample_id": 7}, {"sample_id": 2}, {"sample_id": 7}]}
    random = randomness(tmp_path, {"kind": "curriculum", "pass": "sequential"}, notes)
    assert random.phase_of(np.arange(9)).tolist() == [0, 0, 0, 0, -1, -1, 1, 1, -1]
    assert random.selected.tolist() == [2, 7]
    assert random.why_not() == ""
    assert "several phases" in random.why_not(needs_one_draw=True)


def test_one_shuffled_phase_with_insertions_is_one_draw(tmp_path: Path) -> None:
    notes = {"phases": [phase("shuffle", 0, 4)], "inserted": [{"sample_id": 7}]}
    random = randomness(tmp_path, {"kind": "curriculum", "pass": "sequential"}, notes)
    assert random.why_not(needs_one_draw=True) == ""


def test_a_control_arm_is_random(tmp_path: Path) -> None:
    random = randomness(tmp_path, {"kind": "curriculum", "pass": "shuffle"}, {"phases": [], "inserted": []})
    assert random.why_not(needs_one_draw=True) == ""
