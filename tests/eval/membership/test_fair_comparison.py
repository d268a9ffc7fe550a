"""Gates, p-values, copies and tests of groups in the table, the report and the last line; what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.small_evaluations import evaluate, make_run

from eval.evaluate import main
from eval.membership.checks import Checks
from eval.membership.copies import Copies
from eval.membership.evaluation import Membership
from eval.membership.section import section
from eval.membership.summary import conclusions, overview
from wellread.errors import UserError
from wellread.files import write_json
from wellread.results import Result
from wellread.run import RunDirectory


def result(task: str, metric: str, value: float, group: str = "read") -> Result:
    return Result(run="r", model="m", step=100, tokens=0, task=task, metric=metric, value=value, group=group, n=9)


def results(p_of_gate: float) -> list[Result]:
    scores = {"auc": 0.93, "p": 1e-9, "p_holm": 3e-9, "n_sealed": 50}
    tests = {"rho": -0.15, "p": 0.001, "z": -3.4}
    rows = [result("membership/loss", metric, value) for metric, value in scores.items()]
    for gate, auc in (("words", 0.91), ("shape", 0.52)):
        p = p_of_gate if gate == "words" else 0.4
        rows += [result(f"gate/{gate}", metric, of) for metric, of in {"auc": auc, "p": p / 2, "p_holm": p}.items()]
    rows += [result("order_test/loss", metric, value) for metric, value in tests.items()]
    rows += [result("dataset_inference", "p", 0.002), result("dataset_inference", "p", 0.61, "sealed")]
    counts = {"exact_members": 0, "near_members": 3, "exact_nonmembers": 0, "near_nonmembers": 2}
    return rows + [result("copies", metric, value) for metric, value in counts.items()]


def cells(rows: list[Result]) -> dict[str, object]:
    heads, (row,) = overview(rows)
    return dict(zip(heads, row, strict=True))


def test_a_suspect_ground_truth_is_in_table_and_last_line() -> None:
    suspect, fair = results(0.002), results(0.02)
    assert cells(suspect)["gates"] == "ground truth suspect: .910 .520"
    assert cells(fair)["gates"] == ".910 .520"
    assert (cells(fair)["p"], cells(fair)["Holm"]) == ("1e-09", "3e-09")
    assert list(conclusions(suspect))[-1].startswith("ground truth suspect: at step 100, gate/words distinguishes read")
    assert list(conclusions(fair)) == [
        "order_test/loss at step 100: rho -0.150, p 0.001",
        "dataset inference at step 100: p of read 0.002, sealed 0.610 (sealed: its halves, a check)",
        "copies at step 100: 0 exact and 3 near ones of read samples are sealed",
    ]


def test_a_suspect_ground_truth_is_in_the_report_and_its_figure(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    suspect, fair = section(run, results(0.002)), section(run, results(0.02))
    assert suspect is not None
    assert fair is not None
    assert suspect.values["warnings"][0].startswith("ground truth suspect: at step 100")
    assert fair.values["warnings"] == []
    assert "AUC against sealed (ground truth suspect)" in str(suspect.pictures[0].figure.spec())
    assert "suspect" not in str(fair.pictures[0].figure.spec())
    assert "Without the model, from words: AUC 0.910, p 0.01; after Holm 0.02." in fair.values["remarks"]


def test_results_with_copies_are_also_given_without_them(
    tmp_path: Path, scored: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def copies(self: Checks, sides: Any) -> Copies:
        """The first member and the second non-member are near copies."""
        members, nonmembers = (np.zeros(ids.size, dtype=bool) for ids in sides)
        return Copies(members, np.arange(members.size) == 0, nonmembers, np.arange(nonmembers.size) == 1)

    monkeypatch.setattr(Checks, "copies", copies)
    rows = evaluate(make_run(tmp_path / "run"), steps=[4], bootstrap=100, progress=False)
    sizes = {row.group: row.n for row in rows if row.metric == "auc"}
    assert sizes["read without copies"] == sizes["read"] - 1
    sealed = {row.group: row.value for row in rows if row.metric == "n_sealed"}
    assert (sealed["read"], sealed["read without copies"]) == (4, 3)
    assert next(row.value for row in rows if (row.task, row.metric) == ("copies", "near_members")) == 1


def test_p_values_follow_each_auc(tmp_path: Path, scored: list[Any]) -> None:
    rows = evaluate(make_run(tmp_path / "run"), steps=[2], bootstrap=100, progress=False)
    p = {row.group: row.value for row in rows if row.metric == "p"}
    holm = {row.group: row.value for row in rows if row.metric == "p_holm"}
    # four of eight documents have the highest ranks: z = 8 / sqrt(4 * 4 * 9 / 12)
    assert p["read"] == p["unread"] == pytest.approx(0.0209, abs=1e-4)
    assert holm["read"] == holm["unread"] == pytest.approx(2 * 0.0209, abs=2e-4)


def sorted_run(path: Path) -> RunDirectory:
    run = make_run(path)
    order = {"kind": "sorted", "pass": "sequential", "batch_size": 2}
    write_json(run.manifest_file, {"identity": {"order": order}, "attempts": []})
    return run


def test_an_order_that_is_not_random_has_no_unread_control_and_no_order_test(tmp_path: Path) -> None:
    run = sorted_run(tmp_path / "run")
    why = "the order is sorted, so samples that are read later differ from those read earlier; leave it out"
    with pytest.raises(UserError, match=f"--groups unread: {why}"):
        Membership(run, groups="read,unread")
    with pytest.raises(UserError, match=f"--transcript t.parquet: {why}"):
        Membership(run, transcript="t.parquet")
    with pytest.raises(UserError, match=f"--tests order: {why}"):
        Membership(run, tests="order")
    assert any(note.startswith("unread samples are not a control") for note in Membership(run, scores="loss").notes())


def test_bad_tests_and_transcripts(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(UserError, match="--tests both: not a test; choose from order, inference, none"):
        Membership(run, tests="both")
    with pytest.raises(UserError, match=r"the folder .* does not exist; create it first"):
        Membership(run, transcript=str(tmp_path / "missing" / "t.parquet"))


@pytest.mark.slow
def test_a_run_with_its_gates_and_tests(copied_run: RunDirectory, tmp_path: Path, capsys: Any) -> None:
    """The sealed documents are a random draw: no gate is below 1% after Holm, except once in a hundred draws."""
    flags = ["--steps", "last", "--scores", "loss,min_k++", "--k", "0.2", "--bootstrap", "100"]
    transcript = tmp_path / "t.parquet"
    assert main(Membership, [str(copied_run.path), *flags, "--transcript", str(transcript)]) == 0
    rows = pq.read_table(copied_run.eval / "membership.parquet").to_pylist()
    value = {(row["task"], row["group"], row["metric"]): row["value"] for row in rows}
    assert value["gate/words", "read", "p_holm"] > 0.01
    assert value["gate/shape", "read", "p_holm"] > 0.01
    assert 0.5 < value["membership/loss", "read", "detectable_auc"] < 0.62
    assert value["membership/loss", "read", "p_holm"] >= value["membership/loss", "read", "p"]
    assert 0 < value["dataset_inference", "sealed", "p"] <= 1
    assert value["order_test/loss", "read", "rho"] == pytest.approx(0, abs=0.4)
    out = capsys.readouterr().out
    assert "gates" in out
    assert "dataset inference at step 12: p of read" in out
    assert "ground truth suspect" not in out
    table = pq.read_table(transcript)
    assert table["index"].to_pylist() == list(range(192))  # 12 batches of 16, less than an epoch
    assert (copied_run.eval / "checks.json").exists()
