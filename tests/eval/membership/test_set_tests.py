"""Order test and dataset inference at a checkpoint: which samples they use, and when they are refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.small_evaluations import make_run

from eval.groups import READ, SEALED, UNREAD, Groups
from eval.membership.set_tests import SetTests, select_tests
from eval.membership.whole_sets import Readings
from eval.separation import Ints
from wellread.errors import UserError
from wellread.files import write_json
from wellread.run import RunDirectory


class Division(SimpleNamespace):
    """60 samples that were read, 60 not yet, 60 sealed ones; one per document."""

    corpus = None
    documents = np.arange(180)

    def at(self, step: int) -> dict[str, Ints]:
        return dict(zip((READ, UNREAD, SEALED), np.split(np.arange(180), 3), strict=True))

    def all(self, step: int) -> Ints:
        return np.arange(180)


def run_with(path: Path, **order: Any) -> RunDirectory:
    run = make_run(path / "run")
    write_json(run.manifest_file, {"identity": {"order": {"batch_size": 2, **order}}, "attempts": []})
    return run


def test_tests_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = np.arange(180)[::-1]
    readings = Readings(2 * batches, np.zeros(180, np.int64), np.ones(180, np.int64), 2, np.zeros(180, np.int64))
    monkeypatch.setattr(SetTests, "readings", lambda self, step: readings)
    tests = SetTests(run_with(tmp_path, kind="shuffle"), Division(), ("order", "inference"), 0)  # type: ignore[arg-type]
    rng, notes = np.random.default_rng(1), list[str]()
    values = {
        "loss": -batches - 200.0 * (np.arange(180) >= 60),
        "zlib": rng.normal(size=180),
        "reference": np.ones(180),
    }
    rows = {(task, row["group"], row["metric"]): row["value"] for task, row in tests.rows(5, values, notes.append)}
    assert rows["order_test/loss", "read", "rho"] == pytest.approx(-1)
    assert rows["order_test/loss", "read", "p"] == 0.001
    assert rows["dataset_inference", "read", "p"] == 0.001
    assert {group for task, group, _ in rows if task == "dataset_inference"} == {READ, UNREAD, SEALED}
    assert not any(task == "order_test/reference" for task, _, _ in rows)  # equal for all samples
    assert notes == []


def test_a_test_with_too_few_samples_is_named(tmp_path: Path) -> None:

    run, notes = run_with(tmp_path, kind="shuffle"), list[str]()
    tests = SetTests(run, Groups.of(run, 2000, 0), ("order", "inference"), 0)
    assert list(tests.rows(4, {"loss": np.arange(12.0)}, notes.append)) == []
    assert notes == [
        "step 4: the order test needs 10 documents that can be exchanged, not 8; left out",
        "step 4: dataset inference needs 20 documents of each side, not 8 and 4; left out",
        "step 4: dataset inference needs 20 documents of each side, not 2 and 2; left out",
    ]


def test_the_order_test_is_refused_where_the_order_is_not_random(tmp_path: Path) -> None:
    run = run_with(tmp_path, kind="sorted", **{"pass": "sequential"})
    assert select_tests(None, run) == ["inference"]
    assert select_tests("inference", run) == ["inference"]
    with pytest.raises(UserError, match=r"--tests order: the order is sorted, so samples .* leave it out"):
        select_tests("order", run)


def test_names_of_tests(tmp_path: Path) -> None:
    run = run_with(tmp_path, kind="shuffle")
    assert select_tests(None, run) == ["order", "inference"]
    assert select_tests("none", run) == []
    with pytest.raises(UserError, match="--tests all: not a test; choose from order, inference, none"):
        select_tests("all", run)
