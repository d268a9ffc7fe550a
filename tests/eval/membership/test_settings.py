"""Settings of membership: groups, reference models, what is refused, and what a second call does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.small_evaluations import evaluate, make_run
from support.whole_runs import OLD

from eval.__main__ import main
from eval.groups import Groups
from eval.membership.divisions import divide
from eval.membership.evaluation import fractions
from eval.membership.scores import columns, passes
from wellread.errors import UserError
from wellread.files import write_json
from wellread.results import Result, read
from wellread.run import RunDirectory


def value(results: list[Result], step: int, task: str, group: str, metric: str = "auc") -> float:
    (result,) = (
        r for r in results if (r.step, r.task, r.group, r.metric) == (step, f"membership/{task}", group, metric)
    )
    return result.value


def test_groups_by_age_times_and_category(tmp_path: Path) -> None:
    groups = Groups.of(make_run(tmp_path / "run"), 2000, 0)
    assert groups.history(3)[0].tolist() == [0, 0, 1, 1, 2, 2, -1, -1]
    assert groups.history(3)[1].tolist() == [1, 1, 1, 1, 1, 1, 0, 0]
    pairs = divide(["age", "times", "category"], groups, 4)
    assert {name: (members.tolist(), sealed.tolist()) for name, (members, sealed) in pairs.items()} == {
        "age:0-10": (list(range(8)), [8, 9, 10, 11]),
        "times:1": (list(range(8)), [8, 9, 10, 11]),
        "read/qa": (list(range(8)), [8, 9, 10, 11]),
    }
    assert list(divide(["read", "unread"], groups, 0)) == ["unread"]


def test_ages_and_times_have_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = Groups.of(make_run(tmp_path / "run"), 2000, 0)
    history = np.array([99, 91, 90, 80, 79, 0, 60, 99]), np.array([1, 2, 4, 5, 8, 9, 600, 1])
    monkeypatch.setattr(Groups, "history", lambda *_: history)
    monkeypatch.setattr(Groups, "at", lambda *_: {"read": np.arange(8), "sealed": np.arange(8, 12)})
    ages = {name: members.tolist() for name, (members, _) in divide(["age"], groups, 100).items()}
    assert ages == {"age:0-10": [0, 1, 7], "age:10-20": [2], "age:20-40": [3, 4], "age:40-80": [6], "age:80-160": [5]}
    times = {name: members.tolist() for name, (members, _) in divide(["times"], groups, 100).items()}
    assert times == {
        "times:1": [0, 7], "times:2": [1], "times:4": [2], "times:5-8": [3, 4], "times:9-16": [5], "times:513-": [6]
    }  # fmt: skip


def pretrained(run: RunDirectory) -> RunDirectory:
    manifest = json.loads(run.manifest_file.read_text())
    manifest["identity"]["model"] = "weights:" + "0" * 32
    write_json(run.manifest_file, manifest)
    return run


def test_step_0_is_the_default_reference_of_a_fine_tune(tmp_path: Path, scored: list[Any]) -> None:
    run = pretrained(make_run(tmp_path / "run"))
    results = evaluate(run, scores="loss,reference", bootstrap=100, progress=False, steps=[0, 4])
    assert [step for step, _ in scored] == [0, 4]  # step 0 is scored once, and is its own reference
    assert value(results, 4, "reference", "read") == 1.0  # by construction, 100 above step 0; sealed ones are equal
    assert not [result for result in results if result.step == 0 and result.task == "membership/reference"]
    table = pq.read_table(run.eval / "membership-samples.parquet").to_pandas().query("step == 4")
    assert table["reference"].tolist() == [100.0] * 8 + [0.0] * 4
    assert table["group"].tolist() == ["read"] * 8 + ["sealed"] * 4
    with pytest.raises(UserError, match="--scores reference: needs a reference model; add --reference own"):
        evaluate(run, scores="reference", reference="none", bootstrap=100, progress=False)


def test_without_step_0_there_is_no_reference(
    tmp_path: Path, scored: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = pretrained(make_run(tmp_path / "run"))
    shutil.rmtree(run.checkpoints / "step-00000000")
    evaluate(run, bootstrap=100)
    assert "step 0 has no checkpoint, so there is no reference model" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"--reference own: .* has no checkpoint at step 0"):
        evaluate(run, reference="own", bootstrap=100)


def test_an_order_that_is_not_random_has_no_unread_group(
    tmp_path: Path, scored: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    write_json(run.manifest_file, {"identity": {"order": {"kind": "sequential"}}, "attempts": []})
    results = evaluate(run, bootstrap=100, steps=[2])
    assert {result.group for result in results if result.metric == "auc"} == {"read", "shuffled"}
    assert "unread samples are not a control and are left out: the order is sequential" in capsys.readouterr().err
    with pytest.raises(UserError, match="--groups unread: the order is sequential"):
        evaluate(run, groups="read,unread", bootstrap=100)


def test_results_are_scalars_at_their_steps(tmp_path: Path, scored: list[Any]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = make_run(tmp_path / "run")
    evaluate(run, bootstrap=100, progress=False)
    results = evaluate(run, bootstrap=100, progress=False)
    events = EventAccumulator(str(run.path / "tb" / "eval-membership")).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("membership/loss/mean_loss/sealed")]
    assert losses == [(step, 9.5) for step in (0, 2, 4)]
    assert len(events.Scalars("membership/loss/auc/read")) == 2
    assert value(results, 4, "loss", "sealed", "mean_loss") == 9.5


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"scores": "lost"}, "--scores lost: not a score; choose from loss, zlib"),
        ({"k": "0.2,1.5"}, "--k 1.5: expected fractions of tokens above 0 and up to 1"),
        ({"k": "x"}, "--k x: expected fractions"),
        ({"groups": "read,old"}, "--groups old: not a group; choose from read, unread, age, times, category"),
        ({"reference": "no-such-model"}, "--reference no-such-model: not a directory or a known model"),
    ],
)
def test_settings_are_refused_in_one_line(settings: Any, line: str, tmp_path: Path, scored: list[Any]) -> None:
    with pytest.raises(UserError, match=line) as error:
        evaluate(make_run(tmp_path / "run"), bootstrap=100, **settings)
    assert "\n" not in str(error.value)
    assert scored == []


def test_fractions_are_unique() -> None:
    assert fractions("0.2,0.20,1") == [0.2, 1.0]


def test_steps_by_word(tmp_path: Path, scored: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    for words, steps in {"last": [4], "all": [0, 2, 4], "0,step-2": [0, 2], "2, last": [2, 4]}.items():
        more = ["--bootstrap", "100", "--scores", "loss"]
        assert main(["membership", str(run.path), "--steps", words, *more]) == 0
        assert sorted({result.step for result in read(run.eval / "membership.parquet")}) == steps
    with pytest.raises(UserError, match="--steps all: not a step; give only all, or a list such as 100,last or step-1"):
        main(["membership", str(run.path), "--steps", "4,all"])


@pytest.mark.slow
def test_another_score_needs_no_model(tmp_path: Path) -> None:
    shutil.copytree(OLD / "finetune" / "run", tmp_path / "run")
    run = RunDirectory.open(tmp_path / "run")
    words = ["membership", str(run.path), "--steps", "10", "--max_samples", "20", "--bootstrap", "100"]
    assert main([*words, "--reference", "own", "--k", "0.2"]) == 0
    first = {(r.task, r.group, r.metric): r for r in read(run.eval / "membership.parquet")}
    for step in ("00000000", "00000010"):
        (run.checkpoints / f"step-{step}" / "model").rename(tmp_path / step)
    assert main([*words, "--reference", "own", "--k", "0.2,0.4"]) == 0
    second = {(r.task, r.group, r.metric): r for r in read(run.eval / "membership.parquet")}
    corrected = {key for key in first if key[2] == "p_holm"}  # there are more comparisons now
    assert {key: first[key] for key in first.keys() - corrected}.items() <= second.items()
    assert all(first[key].value <= second[key].value for key in corrected)
    assert {task for task, _, _ in second.keys() - first.keys()} == {"membership/min_k_0.4", "membership/min_k++_0.4"}
    with pytest.raises(UserError, match="has no model/") as error:
        main([*words, "--max_samples", "30"])
    assert "\n" not in str(error.value)
    assert [passes(columns(names, [0.2])) for names in (["loss", "zlib"], ["loss", "ez", "recall"])] == [1, 3]
