"""Membership: statistics compared with other computations, groups, results and kept scores."""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from support.resampled import cluster_bootstrap, permuted_auc
from support.small_evaluations import evaluate, make_run, tokens_with

from eval import kept, resampling, separation
from eval.__main__ import main
from eval.groups import Groups
from eval.membership import summary
from eval.membership.compare import Side, mean_loss
from eval.membership.evaluation import Membership
from eval.progress import Reporter
from eval.separation import auc, roc, tpr_at_fpr
from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.files import sha256_file, with_checksum, write_json
from wellread.results import Result, read
from wellread.tokens import Tokens

ONE_EACH = np.arange(10_000)


def brute_force_auc(members: Sequence[float], nonmembers: Sequence[float]) -> float:
    wins = sum((a > b) + 0.5 * (a == b) for a in members for b in nonmembers)
    return wins / (len(members) * len(nonmembers))


# -- statistics


def test_auc_by_hand() -> None:
    assert auc(np.array([3.0, 1.0]), np.array([2.0, 0.0])) == 0.75
    assert auc(np.array([1.0, 1.0]), np.array([1.0])) == 0.5
    assert auc(np.array([1.0, 2.0]), np.array([0.0, 1.0])) == 0.875  # of four pairs, one is a tie
    assert auc(np.array([-1.0]), np.array([0.0])) == 0.0


@pytest.mark.parametrize("seed", range(8))
def test_auc_is_mann_whitney_with_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    members, nonmembers = rng.integers(0, 9, 37).astype(float), rng.integers(0, 7, 23).astype(float)
    u = stats.mannwhitneyu(members, nonmembers).statistic
    assert auc(members, nonmembers) == pytest.approx(u / (37 * 23), abs=1e-12)
    assert auc(members, nonmembers) == pytest.approx(brute_force_auc(members.tolist(), nonmembers.tolist()), abs=1e-12)


def test_roc_by_hand_and_its_area() -> None:
    fpr, tpr = roc(np.array([3.0, 1.0]), np.array([2.0, 0.0]))
    assert fpr.tolist() == [0, 0, 0.5, 0.5, 1]
    assert tpr.tolist() == [0, 0.5, 0.5, 1, 1]
    rng = np.random.default_rng(0)
    members, nonmembers = rng.integers(0, 9, 50).astype(float), rng.integers(0, 7, 40).astype(float)
    assert np.trapezoid(*roc(members, nonmembers)[::-1]) == pytest.approx(auc(members, nonmembers), abs=1e-12)


def test_tpr_by_hand() -> None:
    hundred = np.arange(100.0)  # the ten highest are 90 ... 99
    assert tpr_at_fpr(np.array([89.0, 90.0, 95.0, 10.0]), hundred, 0.1) == 0.5
    assert tpr_at_fpr(np.array([71.0]), hundred, 0.29) == 1.0  # 0.29 * 100 is 28.999999999999996
    assert tpr_at_fpr(np.array([70.0]), hundred, 0.29) == 0.0


def test_tpr_counts_tied_nonmembers_together() -> None:
    members = np.array([1.0, 2.0])
    assert tpr_at_fpr(members, np.array([1.0] * 10 + [0.0] * 90), 0.1) == 1.0  # FPR 0.10 is allowed: <=
    assert tpr_at_fpr(members, np.array([1.0] * 11 + [0.0] * 89), 0.1) == 0.5  # FPR 0.11 is not


def test_tpr_needs_ten_over_alpha_nonmembers() -> None:
    assert tpr_at_fpr(np.ones(5), np.zeros(99), 0.1) is None
    assert tpr_at_fpr(np.ones(5), np.zeros(100), 0.1) == 1.0
    assert tpr_at_fpr(np.ones(5), np.zeros(999), 0.01) is None
    assert tpr_at_fpr(np.ones(5), np.zeros(1000), 0.01) == 1.0
    with pytest.raises(ValueError, match="between 0 and 1"):
        tpr_at_fpr(np.ones(5), np.zeros(1000), 0)


def test_bootstrap_agrees_with_resampling_one_by_one() -> None:
    rng = np.random.default_rng(1)
    members, nonmembers = rng.integers(0, 6, 9).astype(float), rng.integers(0, 5, 120).astype(float)
    documents, other_documents = rng.integers(0, 4, 9), rng.integers(0, 50, 120)
    u = resampling._draw(rng, separation.codes_of(documents), 20)
    v = resampling._draw(rng, separation.codes_of(other_documents), 20)
    order, other = np.argsort(members), np.argsort(nonmembers)
    sides = (members[order], u[:, order], nonmembers[other], v[:, other])
    aucs, tprs = resampling._weighted_auc(*sides), separation.weighted_tpr(*sides, 0.1)
    for row in range(20):
        assert all(
            len(set(u[row][documents == document])) == 1 for document in documents
        )  # all samples of a document are drawn together
        resampled, against = members.repeat(u[row].astype(int)), nonmembers.repeat(v[row].astype(int))
        assert aucs[row] == pytest.approx(brute_force_auc(resampled.tolist(), against.tolist()), abs=1e-12)
        fpr, tpr = roc(resampled, against)
        assert tprs[row] == pytest.approx(tpr[fpr <= 0.1 + 1e-9].max(), abs=1e-12)


def test_bootstrap_error_equals_that_of_delong() -> None:
    rng = np.random.default_rng(2)
    members, nonmembers = rng.normal(0.7, 1, 300), rng.normal(0, 1, 200)
    wins = members[:, None] > nonmembers
    closed_form = np.sqrt(wins.mean(1).var(ddof=1) / 300 + wins.mean(0).var(ddof=1) / 200)  # DeLong et al. 1988
    draws = cluster_bootstrap(members, nonmembers, ONE_EACH[:300], ONE_EACH[:200], draws=2000, seed=0)
    assert draws.std() == pytest.approx(closed_form, rel=0.06)
    again = cluster_bootstrap(members, nonmembers, ONE_EACH[:300], ONE_EACH[:200], draws=2000, seed=0)
    assert np.array_equal(draws, again)


def test_intervals_cover_the_truth() -> None:
    rng, truth, covered = np.random.default_rng(3), stats.norm.cdf(1 / np.sqrt(2)), 0
    for seed in range(200):
        sides = rng.normal(1, 1, 50), rng.normal(0, 1, 50)
        draws = cluster_bootstrap(*sides, ONE_EACH[:50], ONE_EACH[:50], draws=200, seed=seed)
        low, high = np.quantile(draws, [0.025, 0.975])
        covered += low <= truth <= high
    assert 180 <= covered <= 199  # 95% of 200, within three standard errors and the error of the bootstrap


def test_copies_of_documents_do_not_shrink_the_error() -> None:
    rng = np.random.default_rng(4)
    members, nonmembers = rng.normal(0.5, 1, 150), rng.normal(0, 1, 150)
    fivefold, documents = (members.repeat(5), nonmembers.repeat(5)), ONE_EACH[:150].repeat(5)
    once = cluster_bootstrap(members, nonmembers, ONE_EACH[:150], ONE_EACH[:150], draws=1000, seed=0).std()
    clustered = cluster_bootstrap(*fivefold, documents, documents, draws=1000, seed=0).std()
    naive = cluster_bootstrap(*fivefold, ONE_EACH[:750], ONE_EACH[:750], draws=1000, seed=0).std()
    assert clustered == pytest.approx(once, rel=0.05)
    assert clustered / naive == pytest.approx(np.sqrt(5), rel=0.1)


def test_memory_of_the_bootstrap_is_bounded() -> None:
    assert list(separation.chunks(1000, 4000)) == [500, 500]
    assert list(separation.chunks(3, 10_000_000)) == [1, 1, 1]


def test_shuffled_labels_give_an_auc_of_one_half() -> None:
    rng = np.random.default_rng(5)
    members, nonmembers = rng.normal(2, 1, 120), rng.normal(0, 1, 80)
    draws = permuted_auc(members, nonmembers, ONE_EACH[:120], ONE_EACH[120:200], draws=4000, seed=0)
    low, high = np.quantile(draws, [0.025, 0.975])
    assert low < 0.5 < high
    assert draws.mean() == pytest.approx(0.5, abs=0.003)
    assert draws.std() == pytest.approx(np.sqrt(201 / (12 * 120 * 80)), rel=0.05)  # Mann & Whitney 1947


def test_labels_are_shuffled_by_document() -> None:
    rng = np.random.default_rng(6)
    members, nonmembers = rng.normal(0, 1, 60).repeat(4), rng.normal(0, 1, 40).repeat(4)
    documents, other_documents = ONE_EACH[:60].repeat(4), ONE_EACH[60:100].repeat(4)
    by_document = permuted_auc(members, nonmembers, documents, other_documents, draws=2000, seed=0)
    single = permuted_auc(members, nonmembers, ONE_EACH[:240], ONE_EACH[240:400], draws=2000, seed=0)
    assert by_document.std() / single.std() == pytest.approx(2, rel=0.1)
    assert by_document.mean() == pytest.approx(0.5, abs=0.005)


def test_error_of_a_mean_of_documents() -> None:
    row = mean_loss(Side(np.array([-1.0, -2.0, -3.0, -4.0]), np.array([7, 7, 8, 8])))
    assert row["value"] == 2.5
    assert row["stderr"] == pytest.approx(1.0)  # two clusters with means 1.5 and 3.5: sqrt(2) / sqrt(2)
    one_document = mean_loss(Side(np.array([-1.0, -2.0]), np.array([7, 7])))
    assert one_document == {"value": 1.5}


# -- a run


def value(results: list[Result], step: int, group: str, metric: str = "auc") -> Result:
    (result,) = (r for r in results if (r.step, r.group, r.metric) == (step, group, metric))
    return result


def test_groups_come_from_the_record(tmp_path: Path) -> None:
    groups = Groups.of(make_run(tmp_path / "run"), 2000, 0)
    assert {name: ids.tolist() for name, ids in groups.at(2).items()} == {
        "read": [0, 1, 2, 3],
        "unread": [4, 5, 6, 7],
        "sealed": [8, 9, 10, 11],
    }
    assert groups.at(0)["read"].size == 0
    assert groups.at(4)["unread"].size == 0
    assert groups.all(2).tolist() == list(range(12))


def test_samples_that_are_never_read_are_in_no_group(tmp_path: Path) -> None:
    groups = Groups.of(make_run(tmp_path / "run", batches=2), 2000, 0)
    assert groups.all(0).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]


def test_a_copy_of_a_read_document_is_not_a_control(tmp_path: Path) -> None:
    groups = Groups.of(make_run(tmp_path / "run", copies=True), 2000, 0)
    assert groups.at(0)["unread"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert groups.at(2)["unread"].tolist() == [4, 5, 6]  # 7 is a copy of 0


def test_a_cap_draws_the_same_samples_at_every_checkpoint(tmp_path: Path) -> None:
    run, draws = make_run(tmp_path / "run"), set()
    for seed in range(10):
        groups = Groups.of(run, 2, seed)
        at = {step: {name: set(ids.tolist()) for name, ids in groups.at(step).items()} for step in (0, 2, 4)}
        assert at[0]["sealed"] == at[2]["sealed"] == at[4]["sealed"]
        assert all(len(ids) == 2 for ids in at[2].values())
        assert {i for i in at[4]["read"] if i < 4} <= at[2]["read"]  # changes only by samples that were read since
        assert {i for i in at[0]["unread"] if i >= 4} <= at[2]["unread"]
        draws.add(frozenset(at[2]["sealed"]))
    assert len(draws) > 1


def test_results_of_an_evaluation(tmp_path: Path, scored: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    results = evaluate(run, bootstrap=100)
    assert [step for step, _ in scored] == [0, 2, 4]
    assert value(results, 2, "read").value == 1.0
    assert value(results, 2, "read").tokens == 16
    assert value(results, 2, "unread").value == 1.0  # by construction: -4 ... -7 against -8 ... -11
    assert value(results, 2, "read", "n_sealed").value == 4
    assert value(results, 2, "sealed", "mean_loss").value == 9.5
    assert value(results, 2, "unread", "mean_loss").value == 5.5
    assert value(results, 0, "shuffled").n == 8
    for step in (0, 2, 4):
        control = value(results, step, "shuffled")
        assert control.ci_low is not None
        assert control.ci_high is not None
        assert control.ci_low < 0.5 < control.ci_high
    assert read(run.eval / "membership.parquet") == results
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "no TPR at 10%, 1%, 0.1% FPR: it needs 100, 1,000, 10,000 sealed samples, but only 4 are scored"
    )
    assert lines[2].startswith("step 0: scored; AUC against sealed: unread ")
    assert lines[4].startswith("step 2: scored; AUC against sealed: read 1.000, unread 1.000, shuffled 0.")
    assert not any(r.group == "read" for r in results if r.step == 0)
    heads, rows = Membership.overview(results)
    assert heads[:3] == ["step", "score", "AUC read"]
    assert [row[:2] for row in rows] == [[0, "loss"], [2, "loss"], [4, "loss"]]
    assert rows[0][2] is None
    assert rows[1][2] == "1.000 [1.000, 1.000]"
    assert rows[1][-2:] == [value(results, 2, "read", "mean_loss").value, 9.5]
    table = summary.scores_table(results)
    assert table is not None
    assert [row[:4] for row in table.rows if row[2] == "read"] == [[2, "loss", "read", 1.0], [4, "loss", "read", 1.0]]
    assert {row[0] for row in table.rows if row[2] != "read"} == {4}  # other groups only at the last checkpoint
    assert {row[2] for row in table.rows if row[0] == 4} == {
        r.group for r in results if (r.step, r.metric) == (4, "auc")
    }


def test_steps_that_a_table_loses_are_named(
    tmp_path: Path, scored: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call with --steps replaces the table; the scores of the other steps are kept."""
    monkeypatch.setattr("eval.report.page.write", lambda run: run.report)
    run, few = make_run(tmp_path / "run"), ["--scores", "loss", "--bootstrap", "100"]
    evaluate(run, bootstrap=100, progress=False)
    assert main(["membership", str(run.path), "--steps", "2", *few]) == 0
    expected = f"the table had other steps before (0, 4); to have all of them: wellread membership {run.path}"
    assert expected in capsys.readouterr().out.splitlines()
    assert {result.step for result in read(run.eval / "membership.parquet")} == {2}
    assert main(["membership", str(run.path), *few]) == 0
    assert "had other steps" not in capsys.readouterr().out


def test_tpr_is_reported_when_enough_samples_are_sealed(tmp_path: Path, scored: list[Any]) -> None:
    results = evaluate(make_run(tmp_path / "run", sealed=100), bootstrap=100, progress=False)
    assert value(results, 4, "read", "tpr_at_fpr_0.1").value == 1.0
    assert not [r for r in results if r.metric == "tpr_at_fpr_0.01"]


def test_a_second_call_scores_only_what_is_missing(tmp_path: Path, scored: list[tuple[int, list[int]]]) -> None:
    run = make_run(tmp_path / "run")
    evaluate(run, bootstrap=100, max_samples=3, progress=False)
    scored_before = dict(scored)
    scored.clear()
    first = evaluate(run, bootstrap=100, progress=False)
    assert [(step, sorted(ids + scored_before[step])) for step, ids in scored] == [
        (step, list(range(12))) for step in (0, 2, 4)
    ]
    scored.clear()
    assert evaluate(run, bootstrap=100, progress=False) == first
    assert scored == []


def test_scores_of_other_weights_are_computed_again(tmp_path: Path, scored: list[tuple[int, list[int]]]) -> None:
    run = make_run(tmp_path / "run")
    evaluate(run, bootstrap=100, progress=False)
    scored.clear()
    manifest = run.checkpoints / "step-00000002" / "checkpoint.json"
    weights = manifest.parent / "model" / "model.safetensors"
    weights.write_bytes(b"others")
    files = {"model/model.safetensors": {"size": 6, "sha256": sha256_file(weights)}}
    write_json(manifest, with_checksum(json.loads(manifest.read_text()) | {"files": files}))
    evaluate(run, bootstrap=100, progress=False)
    assert scored == [(2, list(range(12)))]


def test_samples_without_a_score_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_model(checkpoint: Any, corpus: Any, ids: Any, how: Any, progress: Any) -> Iterator[Tokens]:
        yield tokens_with(ids, np.where(ids > 9, np.nan, -1.0))

    monkeypatch.setattr(kept, "_run_model", run_model)
    results = evaluate(make_run(tmp_path / "run"), steps=[4], bootstrap=100)
    assert value(results, 4, "sealed", "n_undefined").value == 2
    assert value(results, 4, "read").value == 0.5
    assert "step 4: loss is not defined for 2 of 12 samples" in capsys.readouterr().err


def test_a_run_without_sealed_samples_has_losses_and_no_comparison(
    tmp_path: Path, scored: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "open", sealed=0)
    results = evaluate(run, bootstrap=100)
    assert {result.metric for result in results} == {"mean_loss"}
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "no sample is sealed, so only the losses of read and unread samples are measured; to compare them, train with "
        "--holdout above 0"
    )
    assert not any("TPR" in line for line in lines)
    finding = Membership.section(run, results).values["finding"]
    assert finding.startswith("At step 4, the mean loss of read samples is ")


def test_invalid_input_is_refused_in_one_line(tmp_path: Path, scored: list[Any]) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(UserError, match="no checkpoint at step 3; choose from 0, 2, 4"):
        evaluate(run, steps=[3])
    with pytest.raises(UserError, match="--bootstrap 1: too few"):
        evaluate(run, bootstrap=1)
    with pytest.raises(UserError, match="--max_samples 1: nothing to compare"):
        evaluate(run, max_samples=1)
    assert not run.eval.exists()


def test_a_terminal_gets_one_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", out := Terminal())
    with Reporter(10, show=True) as reporter:
        reporter.note("[step] 5")
        reporter.move_to(10)
        reporter.finish(5, "AUC against sealed: none")
    assert "[step] 5" in out.getvalue()
    assert "100%" in out.getvalue()
    assert "AUC against sealed" not in out.getvalue()


@pytest.mark.slow
def test_scores_equal_log_likelihoods_of_a_real_model(tmp_path: Path) -> None:
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    run = make_run(tmp_path / "run")
    config = GPTNeoXConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    model = GPTNeoXForCausalLM(config).eval()
    folder = run.checkpoints / "step-00000002"
    model.save_pretrained(folder / "model")
    files = {
        f"model/{path.name}": {"size": path.stat().st_size, "sha256": sha256_file(path)}
        for path in (folder / "model").iterdir()
    }
    manifest = folder / "checkpoint.json"
    write_json(manifest, with_checksum(json.loads(manifest.read_text()) | {"files": files}))
    results = evaluate(run, steps=[2], bootstrap=100, device="cpu", progress=False)
    tokens = torch.tensor(np.array([Corpus.open(run.corpus).tokens(i).astype(np.int64) for i in range(12)]))
    with torch.inference_mode():
        logp = model(tokens).logits.double().log_softmax(-1)
    scores = np.array([(logp[i, 1, tokens[i, 2]] + logp[i, 2, tokens[i, 3]]).item() / 2 for i in range(12)])
    assert value(results, 2, "sealed", "mean_loss").value == pytest.approx(-scores[8:].mean(), abs=1e-5)
    assert value(results, 2, "read").value == brute_force_auc(scores[:4].tolist(), scores[8:].tolist())
