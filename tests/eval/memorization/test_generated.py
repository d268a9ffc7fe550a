"""Free generation: agrees with ranks where all are 0, and is kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.given_texts import Texts

from eval.__main__ import main
from eval.memorization.extraction import Suffixes
from eval.memorization.generated import Work, generate
from wellread.models.generate import greedy
from wellread.models.load import loaded
from wellread.models.loss import next_logits
from wellread.models.score import score_tokens
from wellread.results import read
from wellread.run import RunDirectory
from wellread.tokens import Tokens

pytestmark = pytest.mark.long


def test_generation_agrees_with_ranks(small_model: Path) -> None:
    """All of 20 extractible samples and of 100 that are not; the scores of those are what another decoder matches."""
    rng = np.random.default_rng(0)
    with loaded(small_model, "cpu") as (model, _), torch.inference_mode():
        model.get_output_embeddings().weight.mul_(30)  # a fresh model gives all tokens about the same probability

        def logits(ids: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
            return next_logits(model, ids, last)

        prompts = [rng.integers(5, 2000, size).tolist() for size in rng.integers(4, 12, 20)]
        written = greedy(logits, prompts, new_tokens=8, longest=64, end=None)
        altered = []
        for i in range(100):
            row = list(written[i % 20])
            row[i % 8] = (row[i % 8] + 1 + i) % 2000
            altered.append(row)
        suffixes = written + altered
        for size in sorted({len(prompt) for prompt in prompts}):
            members = [i for i in range(120) if len(prompts[i % 20]) == size]
            texts = Texts([prompts[i % 20] + suffixes[i] for i in members])
            ids = np.arange(len(members))
            columns = Tokens.joined(list(score_tokens(model, texts, ids, device="cpu"))).at(ids)
            of = Suffixes.of(columns, size - 1, 8)
            scores = generate(model, Work(texts, size - 1, 8, "cpu"), ids, "cpu")
            expected = [np.mean(np.array(written[i % 20]) == np.array(suffixes[i])) for i in members]
            assert scores == pytest.approx(expected)
            assert [score == 1 for score in scores] == of.extractible.astype(bool).tolist() == [i < 20 for i in members]


def test_scores_are_kept_and_reported(
    tiny_run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_run.path, tmp_path / "run", symlinks=False)
    words = ["memorization", str(tmp_path / "run"), "--steps", "12", "--prefix", "8", "--suffix", "8", "--generate"]
    words += ["--max_samples", "40"]
    assert main(words) == 0
    assert "generated_differs" in capsys.readouterr().out
    first = read(tmp_path / "run" / "eval" / "memorization.parquet")
    of = {(each.group, each.metric): each for each in first}
    assert of["read", "generated_differs"].value == of["sealed", "generated_differs"].value == 0
    assert 0 <= of["read", "generated"].value <= of["read", "matched"].value + 0.1
    assert of["read", "generated"].n == of["read", "matched"].n

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model ran again")

    monkeypatch.setattr("wellread.models.continuations.continuations", refuse)
    assert main(words) == 0
    assert read(tmp_path / "run" / "eval" / "memorization.parquet") == first
    with pytest.raises(AssertionError, match="the model ran again"):
        main([*words[:5], "7", *words[6:]])
