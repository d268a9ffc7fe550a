"""Columns of target tokens: the numeric fixture, edge cases, and a real model compared with a plain loop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wellread.corpus.read import Corpus
from wellread.models import limits
from wellread.models.load import load_model
from wellread.models.score import highest_values, in_parts, log_likelihoods, score_tokens, token_columns
from wellread.tokens import Tokens


def by_definition(logits: np.ndarray[Any, Any], label: int) -> dict[str, float]:
    """The columns of one token in plain Python, float64."""
    values = [float(value) for value in logits]
    total = math.fsum(math.exp(value - max(values)) for value in values)
    logp = [value - max(values) - math.log(total) for value in values]
    p = [math.exp(value) for value in logp]
    mu = math.fsum(a * b for a, b in zip(p, logp, strict=True))
    return {
        "logp": logp[label],
        "rank": sum(v > values[label] or (v == values[label] and i < label) for i, v in enumerate(values)),
        "mu": mu,
        "sigma": math.sqrt(math.fsum(a * (b - mu) ** 2 for a, b in zip(p, logp, strict=True))),
        "top40": math.log(math.fsum(sorted(p)[-40:])),
    }


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_columns_by_definition(dtype: torch.dtype, error: float) -> None:
    torch.manual_seed(0)
    logits, labels = 4 * torch.randn(30, 90, dtype=torch.float64), torch.randint(90, (30,))
    columns = token_columns(logits.to(dtype), labels)
    for row in range(30):
        for name, value in by_definition(logits[row].numpy(), int(labels[row])).items():
            assert columns[name][row].item() == pytest.approx(value, abs=error), name


def test_ties_are_ranked_by_id() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0, 2.0]]).repeat(5, 1)
    assert token_columns(logits, torch.arange(5))["rank"].tolist() == [4, 0, 1, 2, 3]
    assert int(logits[0].argmax()) == 1  # the token of rank 0


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3])
def test_equal_logits_have_no_deviation(value: float) -> None:
    columns = token_columns(torch.full((2, 50257), value), torch.tensor([0, 5]))
    assert columns["sigma"].tolist() == [0, 0]
    assert torch.equal(columns["mu"], columns["logp"])
    assert columns["logp"][0].item() == pytest.approx(-math.log(50257), rel=1e-6)
    assert columns["rank"].tolist() == [0, 5]
    assert columns["top40"][0].item() == pytest.approx(math.log(40 / 50257), rel=1e-5)


def test_a_certain_token() -> None:
    columns = token_columns(torch.tensor([[0.0, 500.0, 0.0]]), torch.tensor([1]))
    assert {name: column.item() for name, column in columns.items()} == dict.fromkeys(columns, 0)


@pytest.mark.parametrize("n", [1, 39, 40, 41, 89, 90, 91, 2048, 5003])
def test_highest_values_are_those_of_sorting(n: int) -> None:
    torch.manual_seed(n)
    for values in (torch.randn(20, n), torch.randint(0, 9, (20, n)).float(), torch.arange(n).expand(2, n).float()):
        expected = values.sort(dim=1, descending=True).values[:, :40]
        assert torch.equal(highest_values(values, 40).sort(dim=1, descending=True).values, expected)


def test_a_slice_is_computed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(30, 90), torch.randint(90, (30,))
    expected = token_columns(logits, labels)
    monkeypatch.setattr("wellread.models.score.LOGITS_IN_CACHE", 7 * 90)
    for name, column in token_columns(logits, labels).items():
        assert torch.equal(column, expected[name]), name
    assert all(len(column) == 0 for column in token_columns(logits[:0], labels[:0]).values())


def test_parts_have_a_limit() -> None:
    lengths = np.array([5, 5, 5, 30, 1, 1])
    assert in_parts(lengths, 10) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 6)]
    assert in_parts(lengths[:0], 10) == []


@pytest.mark.parametrize("at_once", [1, pytest.param(2048 * 3, marks=pytest.mark.long), 1 << 24])
def test_a_model_equals_a_plain_loop(
    at_once: int, small_model: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(limits.LOGITS_AT_ONCE, "cpu", at_once)
    model, ids = load_model(small_model), np.arange(0, 20, 2)
    parts = list(score_tokens(model, corpus, ids, max_tokens=256, part_tokens=500))
    assert len(parts) > 1
    tokens = Tokens.joined(parts)
    assert tokens.sample_id.tolist() == ids.tolist()
    totals, n_targets = log_likelihoods(model, corpus, ids)
    assert tokens.n_targets.tolist() == n_targets.tolist()
    assert np.allclose(tokens.sums(tokens.logp), totals, rtol=1e-6)
    for place in (0, 7):
        row = torch.from_numpy(corpus.tokens(int(ids[place])).astype(np.int64))
        with torch.inference_mode():
            logits = model(row[None]).logits[0].double().numpy()
        targets = np.flatnonzero(corpus.targets(int(ids[place])))
        columns = [by_definition(logits[target - 1], int(row[target])) for target in targets]
        bounds = slice(*tokens.bounds[place : place + 2])
        for name in ("logp", "rank", "mu", "sigma", "top40"):
            assert np.allclose(getattr(tokens, name)[bounds], [c[name] for c in columns], atol=1e-4), name


def test_at_most_one_slice_of_logits_exists(small_model: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(limits.LOGITS_AT_ONCE, "cpu", 2048 * 8)
    model, rows = load_model(small_model), list[int]()
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, output: rows.append(len(output)))  # type: ignore[operator]
    n_targets = sum(part.logp.size for part in score_tokens(model, corpus, np.arange(30)))
    assert max(rows) == 8
    assert sum(rows) == n_targets
