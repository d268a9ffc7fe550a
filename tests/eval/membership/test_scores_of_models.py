"""Scores on request, recall and gradnorm, against plain loops over single samples of a real model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support.small_evaluations import write_texts
from support.whole_runs import OLD

from eval.__main__ import main
from eval.groups import Groups
from eval.membership.recall import reserve
from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.models.gradients import gradient_norms
from wellread.models.load import load_model
from wellread.run import RunDirectory

pytestmark = pytest.mark.long


def nll(model: Any, tokens: Any, targets: Any) -> torch.Tensor:
    """Mean loss of the target tokens, from a forward pass of one sample."""
    ids = torch.tensor(np.asarray(tokens, dtype=np.int64))[None]
    logp = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return -logp[torch.tensor(np.asarray(targets)[1:])].mean()


def plain_norm(model: Any, tokens: Any, targets: Any) -> float:
    model.zero_grad()
    nll(model, tokens, targets).backward()
    return float(torch.sqrt(sum(p.grad.double().square().sum() for p in model.parameters())))


def scores_of(run: RunDirectory) -> Any:
    return pq.read_table(run.eval / "membership-samples.parquet").to_pandas()


def test_gradnorm_of_a_run(tmp_path: Path) -> None:
    run = RunDirectory.open(shutil.copytree(OLD / "finetune" / "run", tmp_path / "run"))
    words = ["membership", str(run.path), "--steps", "10,last", "--bootstrap", "100", "--scores", "gradnorm,loss"]
    assert main([*words, "--max_samples", "9"]) == 0
    assert main(words) == 0  # adds the others
    table, corpus, model = scores_of(run), Corpus.open(run.corpus), load_model(run.checkpoints / "step-00000010/model")
    assert set(table["step"]) == {10}
    for _, row in table.iterrows():
        expected = -plain_norm(model, corpus.tokens(row.sample_id), corpus.targets(row.sample_id))
        assert row.gradnorm == pytest.approx(expected, rel=1e-5)
    file = run.eval / "gradients" / "step-00000010.parquet"
    assert pq.read_schema(file).names == ["sample_id", "norm"]
    assert set(pq.read_schema(file).metadata) >= {b"record_head", b"checkpoint", b"dtype"}
    (run.checkpoints / "step-00000010" / "model").rename(tmp_path / "model")
    assert main(words) == 0  # runs no model
    (tmp_path / "model").rename(run.checkpoints / "step-00000010" / "model")
    with pytest.raises(UserError, match="samples have up to 128 tokens and the model reads 128, so no prefix fits"):
        main([*words[:-1], "recall"])


def test_tied_weights_count_once_and_no_gradient_is_left() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=True, max_position_embeddings=32,
    )  # fmt: skip
    model, corpus = LlamaForCausalLM(config).eval(), Corpus.open(OLD / "finetune" / "run" / "corpus")

    class Few:
        """The first tokens of samples, below the vocabulary; sample 1 has no target."""

        longest = 24

        def tokens(self, i: int) -> Any:
            return corpus.tokens(i)[: 12 + i] % 50

        def targets(self, i: int) -> Any:
            return (np.arange(len(self.tokens(i))) > 3) & (i != 1)

        def starts(self, i: int) -> Any:
            return np.zeros(1, np.int64)

        def lengths(self, ids: Any) -> Any:
            return np.array([len(self.tokens(i)) for i in ids.tolist()])

    ids, progress = np.array([2, 0, 1, 5]), list[int]()
    parts = list(gradient_norms(model, Few(), ids, part_tokens=30, progress=progress.append))
    assert progress == [1, 2, 3, 4]
    assert [members.tolist() for members, _ in parts] == [[2, 0], [1, 5]]
    norms = np.concatenate([norms for _, norms in parts])
    assert np.isnan(norms[2])
    assert all(parameter.grad is None for parameter in model.parameters())
    for i in (0, 1, 3):
        sample = int(ids[i])
        assert norms[i] == pytest.approx(plain_norm(model, Few().tokens(sample), Few().targets(sample)), rel=1e-5)


def test_a_model_on_several_devices_is_refused() -> None:
    def parameters() -> Iterator[torch.nn.Parameter]:
        yield from (torch.nn.Parameter(torch.zeros(1, device=device)) for device in ("cpu", "meta"))

    model: Any = torch.nn.Module()
    model.parameters = parameters
    corpus = Corpus.open(OLD / "finetune" / "run" / "corpus")
    with pytest.raises(UserError, match="gradients need all weights on one device"):
        next(gradient_norms(model, corpus, np.array([0])))


def test_recall_of_a_run(copied_run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    run = copied_run
    words = ["membership", str(run.path), "--steps", "last", "--bootstrap", "100", "--max_samples", "20"]
    assert main([*words, "--scores", "recall", "--tests", "none"]) == 0
    assert "recall: its prefix is of 10 sealed samples, in no group" in capsys.readouterr().err
    groups, prefix = reserve(Groups.of(run, 20, 0))
    checkpoint = run.checkpoints / "step-00000012"
    corpus, model = groups.corpus, load_model(checkpoint / "model")
    before, space = np.zeros(0, np.int64), 512 - corpus.longest  # positions of tiny
    for text in prefix.texts:
        if len(text) <= space - before.size:
            before = np.concatenate([before, text])
    assert before.size
    table = scores_of(run)
    assert groups.withheld is not None
    assert not set(table["sample_id"]) & set(groups.withheld)
    for _, row in table.groupby("group").head(4).iterrows():
        tokens, targets = corpus.tokens(row.sample_id), corpus.targets(row.sample_id)
        with torch.inference_mode():
            alone = nll(model, tokens, targets)
            after = nll(model, np.concatenate([before, tokens]), np.concatenate([np.zeros(before.size, bool), targets]))
        assert row.recall == pytest.approx(float(after / alone), abs=2e-5)
    (checkpoint / "model").rename(run.path / "model")
    assert main([*words, "--scores", "recall,loss", "--tests", "none"]) == 0  # runs no model


def test_both_without_a_run(small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, vocabulary = np.random.default_rng(0), ["river", "stone", "tree", "a", "the", "of", "runs", "cold"]
    texts = [" ".join(rng.choice(vocabulary, rng.integers(3, 9))) + f" {i}" for i in range(130)]
    a, b = write_texts(tmp_path / "a.jsonl", texts[:70]), write_texts(tmp_path / "b.jsonl", [*texts[70:], texts[70]])
    words = ["membership", "--model", str(small_model), "--members", str(a), "--bootstrap", "100", "--device", "cpu"]
    out = ["--nonmembers", str(b), "--out", str(tmp_path / "out")]
    assert main([*words, *out, "--scores", "loss,recall,gradnorm"]) == 0
    assert "recall: its prefix is of 6 non-members, in no group" in capsys.readouterr().err
    curve = pq.read_table(tmp_path / "out" / "roc.parquet").to_pandas()
    assert set(curve["score"]) == {"loss", "recall", "gradnorm"}
    assert len(list((tmp_path / "out" / "gradients").glob("*.parquet"))) == 1
    assert len(list((tmp_path / "out" / "tokens").glob("*.parquet"))) == 2  # with and without the prefix
    long = write_texts(tmp_path / "long.jsonl", [*texts[70:], "river " * 200])
    with pytest.raises(UserError, match="samples have up to 128 tokens and the model reads 128, so no prefix fits"):
        main([*words, "--nonmembers", str(long), "--scores", "recall"])
