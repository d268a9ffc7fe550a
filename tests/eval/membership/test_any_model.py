"""Membership of any texts under any models, without a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score, roc_curve
from support.small_evaluations import write_texts

from eval.__main__ import main
from eval.membership.any_output import classify
from eval.membership.compared import positions_of
from eval.membership.files import TextSamples, read_texts
from wellread.corpus.tokenizer import Tokenizer
from wellread.errors import UserError
from wellread.models.load import load_model
from wellread.models.score import log_likelihoods
from wellread.results import Result, read


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    words = ["river", "stone", "tree", "a", "the", "of", "runs", "over", "Blue", "cold"]
    texts = [" ".join(rng.choice(words, rng.integers(3, 40))) + f" {i}" for i in range(230)]
    return write_texts(tmp_path / "a.jsonl", texts[:120]), write_texts(
        tmp_path / "b.jsonl", texts[120:], as_strings=True
    )


@pytest.mark.slow
def test_models_and_files(
    files: tuple[Path, Path], small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, out = shutil.copytree(small_model, tmp_path / "copy"), tmp_path / "out"
    words = ["--members", str(files[0]), "--nonmembers", str(files[1]), "--bootstrap", "100", "--device", "cpu"]
    more = [
        "--out",
        str(out),
        "--threshold",
        str(files[0]),
        "--csv",
        "--scores",
        "loss,zlib,lowercase,min_k",
        "--k",
        "0.2",
    ]
    assert main(["membership", "--model", f"{small_model},{copy}", *words, *more]) == 0
    printed = capsys.readouterr()
    assert f"{small_model} and {copy} have the same weights; they are compared once" in printed.err
    assert "no TPR at 1% FPR: it needs 1,000 non-members, not 110" in printed.err
    assert "words (p " in printed.out

    texts = [text for path in files for text in read_texts(path)]
    samples = TextSamples(texts, Tokenizer.load(small_model), 128)
    totals, n_targets = log_likelihoods(load_model(small_model), samples, np.arange(230))
    loss, is_member = totals / n_targets, np.arange(230) < 120
    results = {(each.task, each.group, each.metric): each for each in read(out / "membership.parquet")}
    assert results["membership/loss", "members", "auc"].value == pytest.approx(roc_auc_score(is_member, loss), abs=1e-4)
    assert results["membership/loss", "nonmembers", "mean_loss"].value == pytest.approx(-loss[120:].mean(), abs=1e-5)
    p, p_holm = (results["membership/loss", "members", metric].value for metric in ("p", "p_holm"))
    assert p <= p_holm <= 4 * p or p_holm == 1  # four scores
    assert {task for task, _, _ in results} == {
        "membership/loss", "membership/zlib", "membership/lowercase", "membership/min_k_0.2",
        "gate/words", "gate/shape", "copies",
    }  # fmt: skip

    curve = pq.read_table(out / "roc.parquet").to_pandas().query("score == 'loss'")
    fpr, tpr, _ = roc_curve(is_member, loss, drop_intermediate=False)
    grid = np.linspace(0, 1, 201)  # scores in 32 and 64 bits may differ in a tie, and so in the number of points
    distance = np.interp(grid, curve["fpr"], curve["tpr"]) - np.interp(grid, fpr, tpr)
    assert np.abs(distance).mean() < 1e-3
    assert np.trapezoid(curve["tpr"], curve["fpr"]) == pytest.approx(roc_auc_score(is_member, loss), abs=1e-4)
    classified = pq.read_table(out / "classified.parquet").to_pandas().query("score == 'loss'")
    rate = results["membership/loss", "members", "tpr_at_fpr_0.1"].value
    assert classified["member"].astype(float).mean() == pytest.approx(rate, abs=1e-12)  # the members, classified again
    threshold = results["membership/loss", "members", "threshold_at_fpr_0.1"].value
    noise = 1e-4  # two machines add the same numbers in another order
    assert (loss[120:] > threshold + noise).mean() <= 0.1 <= (loss[120:] > threshold - noise).mean() + 1 / 110
    assert pyarrow.csv.read_csv(out / "roc.csv").num_rows == pq.read_table(out / "roc.parquet").num_rows
    assert (out / "roc.svg").read_bytes().startswith(b"<svg")

    shutil.rmtree(copy)
    assert main(["membership", "--model", str(small_model), *words]) == 0  # only prints
    assert "all results" not in capsys.readouterr().out


def test_texts_are_classified_once_where_there_are_copies(tmp_path: Path) -> None:
    """Results without copies have a threshold of their own, which is not that of the comparison."""
    thresholds = {"members": -3.0, "members without copies": -1.0}
    results = [
        Result(
            run="", model="m", step=0, tokens=0, task="membership/loss", metric="threshold_at_fpr_0.1", value=value,
            group=group, n=9,
        )
        for group, value in thresholds.items()
    ]  # fmt: skip
    classify(tmp_path, np.array([1, 2]), results, {"m": {"loss": np.array([0.0, -2.0, -4.0])}}, csv=False)
    rows = pq.read_table(tmp_path / "classified.parquet").to_pylist()
    assert [(row["row"], row["threshold"], row["member"]) for row in rows] == [(0, -3.0, True), (1, -3.0, False)]


def test_positions_of_a_model_that_calls_them_otherwise(tmp_path: Path) -> None:
    from transformers import MptConfig

    MptConfig(d_model=8, n_heads=2, n_layers=1, max_seq_len=64, vocab_size=16).save_pretrained(tmp_path)
    assert [positions_of(tmp_path, most) for most in (128, 32)] == [64, 32]


LINES = {
    "not a file": ("c.jsonl", "does not exist"),
    "empty": ("empty.jsonl", "has no texts"),
    "not JSON": ("plain.jsonl", "plain.jsonl:1: not JSON"),
    "no text": ("number.jsonl", "number.jsonl:2: has no text"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_file_without_texts_is_refused(name: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    for file, content in {"empty": "\n", "plain": "once upon", "number": '"a"\n{"texts": "b"}\n'}.items():
        (tmp_path / f"{file}.jsonl").write_text(content)
    file, line = LINES[name]
    with pytest.raises(UserError, match=line) as error:
        main(["membership", "--model", "pythia-70m", "--members", str(files[0]), "--nonmembers", str(tmp_path / file)])
    assert "\n" not in str(error.value)


def test_other_mistakes_are_one_line(files: tuple[Path, Path], small_model: Path, tmp_path: Path) -> None:
    few = write_texts(tmp_path / "few.jsonl", ["x y", "z"])
    both = write_texts(tmp_path / "both.jsonl", [*read_texts(files[0])[:7], "new"])
    start = ["membership", "--model", str(small_model), "--members", str(files[0]), "--nonmembers"]
    cases = {
        (str(both),): r"7 texts are in both \((?:\"[^\"]*\", ){4}\"[^\"]*\"\); remove them",
        (str(files[1]), "--csv"): "--csv: writes files; add --out DIR",
        (str(few), "--threshold", str(few), "--out", "x"): "--threshold: needs 100 non-members",
        (str(files[1]), "--scores", "ez"): "--scores ez: needs a reference model",
        (str(files[1]), "--scores", "mope"): "--scores mope: not a score; choose from loss",
        (str(files[1]), "--k", "2"): "--k 2: expected fractions",
        (str(files[1]), "--bootstrap", "1"): "--bootstrap 1: too few",
        (str(files[1]), "--max_tokens", "1"): "--max_tokens 1: nothing to score",
        (str(files[1]), "--seed", "-1"): "--seed -1: must be at least 0",
    }
    for words, line in cases.items():
        with pytest.raises(UserError, match=line) as error:
            main([*start, *words])
        assert "\n" not in str(error.value)
    short = shutil.copytree(small_model, tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8}))
    with pytest.raises(UserError, match=r"--reference .*short: reads 8 tokens, but samples have up to 128"):
        main([*start, str(files[1]), "--reference", str(short), "--scores", "reference"])
    with pytest.raises(UserError, match="--model no-such-model: not a directory or a known model"):
        main(["membership", "--model", "no-such-model", "--members", str(files[0]), "--nonmembers", str(files[1])])
