"""Membership on a corpus in a known order, without a run: what a published step has read, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.small_evaluations import make_corpus

from eval.__main__ import main
from eval.membership.sequential import Sequential
from wellread.corpus.canaries import Texts
from wellread.corpus.read import Corpus
from wellread.data.sources.megatron_write import write as write_megatron
from wellread.errors import UserError
from wellread.models.load import load_model
from wellread.models.score import log_likelihoods
from wellread.results import read


def sequential(n: int, batch_size: int | None = None) -> Sequential:
    """A corpus of which only the number of samples is known."""
    settings: dict[str, Any] = {"max_samples": 100, "max_tokens": 2048, "seed": 0, "recall": False}
    corpus = Sequential(name="pile/document", order="sequential", batch_size=batch_size, **settings)
    corpus.__dict__["reader"] = SimpleNamespace(n_trainable=n, n=n)
    return corpus


@pytest.mark.parametrize(
    ("model", "batch_size", "count"),
    [
        ("pythia-70m@step3000", 1024, 3000 * 1024),
        ("pythia-70m@step3000", None, 3000 * 1024),
        ("pythia-1.4b-deduped@step1", None, 1024),
        ("pythia-70m-v0@step6000", None, 6000 * 1024),
        ("pythia-160m-v0@step6000", None, 3000 * 2048),  # its batches are twice as large, its names twice its steps
        ("pythia-410m-deduped-v0@step1000", 2048, 500 * 2048),
        ("pythia-1b-v0@step6000", None, 6000 * 1024),
        ("pythia-160m@step6000", None, 6000 * 1024),  # in the current release all batches are equal
        ("mine@step3", 7, 21),
    ],
)
def test_what_a_step_has_read(model: str, batch_size: int | None, count: int) -> None:
    assert sequential(10**8, batch_size).n_read(model) == count


def test_canaries_of_a_corpus_are_on_no_side(tmp_path: Path) -> None:
    """Of 8 trainable samples the last 2 are canaries, so 6 are in the order; 4 have been read."""
    sequences = [np.array([1, 2, 3, 4 + i], dtype=np.uint32) for i in range(21)]
    texts = Texts(sequences, np.array([1, 1] + [0] * 19), np.arange(21) >= 2, np.arange(21))
    corpus = make_corpus(tmp_path / "corpus", 8, 4, False, texts)
    settings: dict[str, Any] = {"max_samples": 100, "max_tokens": 2048, "seed": 0, "recall": False}
    order = Sequential(name=str(corpus.path), order="sequential", batch_size=2, **settings)
    assert order._draw(4, tmp_path).documents.tolist() == [100, 101, 102, 103, 104, 105]
    with pytest.raises(UserError, match=r"has read 6 samples, and .* has 6, so nothing is unread"):
        order.n_read("mine@step3")


@pytest.mark.parametrize(
    ("model", "batch_size", "line"),
    [
        ("pythia-160m-v0@step6000", 1024, "--batch_size 1024: pythia-160m-v0@step6000 was trained with 2,048 samples"),
        ("pythia-70m@step3000", 512, "--batch_size 512: pythia-70m@step3000 was trained with 1,024 samples"),
        ("pythia-70m@step3001", None, "this step was not published; the nearest are step3000"),
        ("pythia-70m-v0@step512", None, "this step was not published; the nearest are step1000"),
        ("pythia-70m", None, "--model pythia-70m: which step"),
        ("pythia-70m@step0", None, "has read nothing at step 0"),
        ("pythia-70m@step143000", None, r"has read 146,432,000 samples, and pile/document has 100,000,000"),
        ("mine@step3", None, "--batch_size: give the samples per batch"),
        ("mine", 4, "--model mine: the name says no step"),
    ],
)
def test_what_is_refused(model: str, batch_size: int | None, line: str) -> None:
    with pytest.raises(UserError, match=line) as error:
        sequential(10**8, batch_size).n_read(model)
    assert "\n" not in str(error.value)


def test_a_corpus_that_is_not_the_models_is_refused(tmp_path: Path) -> None:
    write_megatron(tmp_path / "short", [np.arange(9)] * 4, "uint16")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    start = ["membership", "--corpus", str(tmp_path / "short"), "--order", "sequential", "--model"]
    cases = {
        ("pythia-70m@step1",): "not Pythia's order: sequence 0 has 9 tokens",
        ("pythia-70m@step1", "--order", "sorted"): "--order sorted: choose sequential, pythia",
        ("pythia-70m@step1", "--members", "a.jsonl"): "--corpus and --members: compare either samples of a corpus or",
        ("pythia-70m@step1", "--max_samples", "1"): "--max_samples 1: nothing to compare",
        (f"{tmp_path / 'run'}",): "a run has a record of what it read; use wellread members",
        (f"{tmp_path / 'run'}@step-4", "--batch_size", "1"): "a run has a record of what it read; use wellread members",
    }
    for words, line in cases.items():
        with pytest.raises(UserError, match=line) as error:
            main([*start, *words])
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="--members is missing; give two files of texts, or --corpus"):
        main(["membership", "--model", "pythia-70m"])


def losses(table: Path) -> dict[str, float]:
    """Mean loss of each group, in `membership.parquet`."""
    rows = [each for each in read(table) if each.task == "membership/loss"]
    return {each.group: each.value for each in rows if each.metric == "mean_loss"}


@pytest.mark.long
def test_a_published_step_of_a_megatron_set(
    tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A small model under a published name, which reads the beginnings of sequences of the length of Pythia's."""
    rng = np.random.default_rng(0)
    pile = write_megatron(tmp_path / "document", (rng.integers(2048, size=2049) for _ in range(1050)), "uint16")
    words = ["membership", "--corpus", str(tmp_path / "document"), "--order", "sequential", "--batch_size", "1024"]
    words += [
        "--model",
        "pythia-70m@step1",
        "--max_samples",
        "20",
        "--bootstrap",
        "100",
        "--out",
        str(tmp_path / "out"),
    ]
    with pytest.raises(UserError, match="pythia-70m") as error:
        main(words)  # nothing can be downloaded here
    assert "\n" not in str(error.value)
    shutil.copytree(small_model, tmp_path / "models" / "pythia-70m@step1")
    monkeypatch.setenv("WELLREAD_MODELS", str(tmp_path / "models"))
    assert main([*words, "--scores", "loss,zlib,lowercase,min_k++"]) == 0
    printed = capsys.readouterr()
    assert "40 texts are truncated to 129 tokens" in printed.err  # it reads 128, and one more is predicted
    results = read(tmp_path / "out" / "membership.parquet")
    (auc,) = (each for each in results if (each.task, each.group, each.metric) == ("membership/loss", "members", "auc"))
    assert (auc.model, auc.step, auc.n) == ("pythia-70m@step1", 1, 20)
    assert {each.task for each in results} >= {"gate/words", "gate/shape", "copies", "membership/lowercase"}
    samples = np.sort(np.random.default_rng(0).choice(1024, 20, replace=False, shuffle=False))
    model = load_model(small_model)

    class Beginning:
        longest = 128

        def tokens(self, i: int) -> Any:
            return pile.tokens(i)[:129]

        def targets(self, i: int) -> Any:
            return np.arange(129) > 0

        def starts(self, i: int) -> Any:
            return np.zeros(1, np.int64)

        def lengths(self, ids: Any) -> Any:
            return np.full(len(ids), 129)

    totals, n_targets = log_likelihoods(model, Beginning(), samples)
    assert losses(tmp_path / "out" / "membership.parquet")["members"] == pytest.approx(
        (-totals / n_targets).mean(), abs=1e-4
    )
    with pytest.raises(UserError, match="samples have up to 129 tokens and the model reads 128, so no prefix fits"):
        main([*words, "--scores", "recall"])


@pytest.mark.long
def test_a_compiled_corpus(tmp_path: Path, small_model: Path, corpus: Corpus) -> None:
    """Two models of the same corpus at other steps: each has its own members; sealed samples are in no group."""
    folders = [shutil.copytree(small_model, tmp_path / f"mine@step{step}") for step in (2, 5)]
    (folders[1] / "generation_config.json").unlink()
    tokens = folders[1] / "model.safetensors"
    tokens.write_bytes(tokens.read_bytes()[:-4] + b"\0\0\0\0")  # other weights, which are not compared once
    words = ["membership", "--corpus", str(corpus.path), "--batch_size", "16", "--bootstrap", "100", "--scores"]
    more = ["loss", "--out", str(tmp_path / "out"), "--model", ",".join(map(str, folders))]
    assert main([*words, *more]) == 0
    results = read(tmp_path / "out" / "membership.parquet")
    documents = corpus.samples().column("document").to_numpy()[: corpus.n_trainable]
    for folder, count in zip(folders, (32, 80), strict=True):
        of = [each for each in results if each.model == str(folder) and each.task == "membership/loss"]
        sizes = {"shuffled": 0.0} | dict.fromkeys(("members", "nonmembers"), 0.0)
        for each in of:  # some samples have no target among the tokens that the model reads
            sizes[each.group] += each.n if each.metric == "mean_loss" else 0
            sizes[each.group] += each.value if each.metric == "n_undefined" else 0
        unread = (~np.isin(documents[count:], documents[:count])).sum()
        assert sizes == {"shuffled": 0, "members": count, "nonmembers": unread}
    assert {each.step for each in results} == {2, 5}
    curves = pq.read_table(tmp_path / "out" / "roc.parquet").to_pandas()
    assert set(curves["model"]) == set(map(str, folders))
