"""When an order selects what a run reads, so that sealed samples are not comparable, and where that is said."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.small_evaluations import evaluate, make_run

from eval.forgetting.evaluation import Forgetting
from eval.groups import Groups
from eval.membership.evaluation import Membership
from eval.membership.section import section
from eval.selection import selection
from wellread.files import write_json
from wellread.order import metrics
from wellread.order.build import Built
from wellread.order.permutation import ListedOrder
from wellread.order.store import keep
from wellread.run import RunDirectory


def ordered(run: RunDirectory, **order: Any) -> RunDirectory:
    write_json(run.manifest_file, {"identity": {"order": {"batch_size": 2, **order}}, "attempts": []})
    return run


def filtered(path: Path, n: int) -> RunDirectory:
    """A run whose filter leaves the first `n` of 8 samples, and which has read four of them."""
    run, ids = make_run(path / f"run-{n}", batches=2), np.arange(n)
    shape: dict[str, Any] = {"seed": 0, "n": n, "batch_size": 2, "ids": ids, "ids_sha256": metrics.digest(ids)}
    order = ListedOrder(kind="shuffle", listed="filter", by="n_targets>=2", source="", **shape)
    keep(run, Built(order, order.n))
    return ordered(run, **order.identity())


def test_a_filter_selects_what_is_read(tmp_path: Path) -> None:
    assert selection(filtered(tmp_path, 4), [0, 2]).startswith(
        "the order (filter:n_targets>=2) selects what is read: 4 of 8 trainable samples up to step 2, so they may "
    )
    assert selection(filtered(tmp_path, 8), [0, 2]) == ""  # all samples satisfy it


def test_a_sequential_order_selects_until_all_samples_are_read(tmp_path: Path) -> None:
    run = ordered(make_run(tmp_path / "run"), kind="sequential")
    assert [bool(selection(run, steps)) for steps in ([], [0], [2], [0, 2, 4], [4])] == [
        False,
        False,
        True,
        True,
        False,
    ]
    assert "4 of 8 trainable samples up to step 2" in selection(run, [0, 2, 4])


def test_a_shuffle_does_not(tmp_path: Path) -> None:
    assert selection(make_run(tmp_path / "run"), [2]) == ""


def test_membership_and_its_section_say_so(
    tmp_path: Path, scored: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = filtered(tmp_path, 4)
    results = evaluate(run, bootstrap=100, steps=[2])
    assert "warning: the order (filter:n_targets>=2) selects what is read: 4 of 8" in capsys.readouterr().err
    of_report = section(run, results)
    assert of_report is not None
    assert any(remark.startswith("Read and sealed samples may not be") for remark in of_report.values["remarks"])
    plain = make_run(tmp_path / "plain")
    assert not any("selects" in note for note in Membership(plain, scores="loss").notes())


def test_forgetting_says_so(tmp_path: Path) -> None:
    run = filtered(tmp_path, 4)
    evaluation: Any = SimpleNamespace(
        run=run,
        groups=Groups.of(run, 2000, 0),
        checkpoints=[SimpleNamespace(step=2)],
        curve=SimpleNamespace(steps=np.arange(9), is_far=lambda steps: steps > 9),
        readings=SimpleNamespace(steps=np.arange(2)),
    )
    (note,) = Forgetting.notes(evaluation)
    assert note.startswith("warning: the order (filter:n_targets>=2) selects what is read: 4 of 8")
    assert note.endswith("and so may the change of their losses without reading")
