"""Extraction: formulas by hand, and a model that generates and draws what its token columns predict."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom
from support.given_texts import Texts

from eval.continuations import first_run
from eval.intervals import clustered_share, upper_limit
from eval.memorization.extraction import Suffixes, documents_needed
from wellread.models.generate import greedy
from wellread.models.load import loaded
from wellread.models.loss import next_logits
from wellread.models.score import score_tokens
from wellread.tokens import Tokens


def tokens(rows: Sequence[Sequence[tuple[int, float, float]]]) -> Tokens:
    """Columns of samples with (rank, p, top-40 mass) of each target token; samples 10, 11, …"""
    flat = [token for row in rows for token in row]
    rank, p, mass = (np.array(column) for column in zip(*flat, strict=True))
    return Tokens(
        sample_id=10 + np.arange(len(rows)),
        bounds=np.cumsum([0, *map(len, rows)]),
        logp=np.log(p).astype(np.float32),
        rank=rank.astype(np.int32),
        mu=np.zeros(len(flat), np.float32),
        sigma=np.zeros(len(flat), np.float32),
        top40=np.log(mass).astype(np.float32),
    )


SURE, FIRST, SECOND, LAST, OUT = (0, 1.0, 1.0), (0, 0.5, 0.8), (1, 0.25, 0.5), (39, 0.01, 0.5), (40, 0.01, 0.5)


def test_formulas_by_hand() -> None:
    """A prefix of one target token, which does not count, and a suffix of two; what follows does not count either."""
    of = Suffixes.of(
        tokens([
            (OUT, FIRST, FIRST), (SECOND, FIRST, SECOND, OUT), (FIRST, LAST, SECOND), (FIRST, OUT, FIRST),
            (SURE, SURE, SURE, SURE),
        ]), 1, 2,
    )  # fmt: skip
    assert of.sample_id.tolist() == [10, 11, 12, 13, 14]
    assert of.extractible.tolist() == [1, 0, 0, 0, 1]
    assert of.matched.tolist() == [1, 0.5, 0, 0.5, 1]
    q = np.array([0.625 * 0.625, 0.625 * 0.5, 0.02 * 0.5, 0, 1])
    assert np.exp(of.log_q) == pytest.approx(q, rel=1e-6)
    assert of.log_q[3] == -np.inf
    assert of.chance(1) == pytest.approx(q, rel=1e-6)
    assert of.chance(100) == pytest.approx(1 - (1 - q) ** 100, rel=1e-5)
    assert of.chance(100)[2] == pytest.approx(0.6339677, rel=1e-5)  # 1 - 0.99^100
    assert of.chance(100)[3:].tolist() == [0, 1]


def test_a_tiny_probability_is_not_lost() -> None:
    of = Suffixes.of(tokens([[(1, 1e-30, 1.0), (1, 1e-7, 1.0)]]), 0, 2)
    assert of.chance(1000)[0] == pytest.approx(1e-34, rel=1e-4)


def test_samples_where_the_model_has_diverged_are_not_defined() -> None:
    of = Suffixes.of(tokens([(FIRST, FIRST), ((0, float("nan"), 0.5), FIRST), (SECOND, FIRST)]), 0, 2)
    assert np.isnan(of.matched).tolist() == np.isnan(of.log_q).tolist() == [False, True, False]
    assert of.at(np.array([10, 11, 12])).sample_id.tolist() == [10, 12]
    assert of.at(np.array([12])).matched.tolist() == [0.5]


def test_a_sample_that_is_too_short() -> None:
    with pytest.raises(ValueError, match=r"fewer than 1 \+ 2 target tokens"):
        Suffixes.of(tokens([(FIRST, FIRST)]), 1, 2)


def test_limits_by_hand() -> None:
    assert upper_limit(128) == pytest.approx(0.0231321, rel=1e-3)
    assert (1 - upper_limit(128)) ** 128 == pytest.approx(0.05)
    assert (documents_needed(0.01), documents_needed(0.5)) == (299, 5)
    assert 0.99**299 < 0.05 < 0.99**298


def test_intervals() -> None:
    documents = np.array([1, 1, 2, 3])
    assert clustered_share(np.zeros(128), np.arange(128)) == {"value": 0, "ci_low": 0, "ci_high": upper_limit(128)}
    assert clustered_share(np.ones(4), documents) == {
        "value": 1,
        "ci_low": pytest.approx(0.05 ** (1 / 3)),
        "ci_high": 1,
    }
    windows = clustered_share(np.zeros(1000), np.arange(1000) // 50)  # the windows of a document may all be alike
    assert windows == {"value": 0, "ci_low": 0, "ci_high": pytest.approx(0.1391, abs=1e-4)}
    some = clustered_share(np.array([1.0, 1, 0, 0]), documents)
    # residuals by document: 1, -0.5, -0.5; variance (1 + .25 + .25) * 3 / 2 / 16
    assert (some["value"], some["stderr"]) == (0.5, pytest.approx(0.375))
    assert 0 <= some["ci_low"] < 1e-3
    assert some["ci_high"] > 0.999  # three documents say hardly anything
    one = clustered_share(np.r_[1.0, np.zeros(127)], np.arange(128))
    assert (one["ci_low"], one["ci_high"]) == (pytest.approx(0.000198, rel=0.03), pytest.approx(0.0428, rel=0.01))
    assert clustered_share(np.r_[1.0, np.zeros(999)], np.arange(1000) // 50)["ci_high"] >= windows["ci_high"]


@pytest.mark.parametrize(("n", "rate"), [(300, 0.01), (100, 0.03), (128, 0.01), (200, 0.2), (50, 0.5)])
def test_intervals_cover_rare_and_common_rates(n: int, rate: float) -> None:
    """Exactly, over the binomial distribution. 0 of n has a one-sided limit of 95%, so up to 5% are above."""
    covered = 0.0
    for count in range(n + 1):
        row = clustered_share((np.arange(n) < count).astype(np.float64), np.arange(n))
        covered += binom.pmf(count, n, rate) * (row["ci_low"] <= rate <= row["ci_high"])
    assert covered > 0.93


def test_intervals_cover_a_share_of_windows_of_documents() -> None:
    """Documents of five windows, each with another rate; 1,000 draws. Coverage is 98%, and 93% is 11 standard errors
    lower; the seed is fixed."""
    rng, rate, correlation, documents = np.random.default_rng(0), 0.05, 0.3, np.repeat(np.arange(60), 5)
    shape = (1 - correlation) / correlation
    covered = 0
    for _ in range(1000):
        rates = rng.beta(rate * shape, (1 - rate) * shape, 60)
        row = clustered_share((rng.random(300) < rates[documents]).astype(np.float64), documents)
        covered += row["ci_low"] <= rate <= row["ci_high"]
    assert covered > 930


def test_first_runs() -> None:
    for mask, run in (("0011101", (2, 3)), ("111", (0, 3)), ("0001", (3, 1)), ("000", (0, 0))):
        assert first_run(np.array([each == "1" for each in mask])) == run


def test_a_model_writes_and_draws_what_its_columns_predict(small_model: Path) -> None:
    """20 greedy continuations are extractible, and with one other token they are not, as generation says.

    A suffix of two tokens is drawn 2,000 times: its frequency is within 4 standard errors of q, for up to 6 suffixes
    with q between .05 and .5; by chance this fails for 4 in 10,000 seeds, and the seed is fixed.
    """
    rng = np.random.default_rng(0)
    with loaded(small_model, "cpu") as (model, _), torch.inference_mode():
        model.get_output_embeddings().weight.mul_(30)  # a fresh model gives all tokens about the same probability

        def logits(ids: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
            return next_logits(model, ids, last)

        prompts = rng.integers(5, 2000, (20, 8)).tolist()
        written = greedy(logits, prompts, new_tokens=8, longest=64, end=None)
        altered = [[*row[:5], (row[5] + 1) % 2000, *row[6:]] for row in written]
        texts = Texts([p + s for p, s in zip(prompts + prompts, written + altered, strict=True)])
        columns = Tokens.joined(list(score_tokens(model, texts, np.arange(40), device="cpu"))).at(np.arange(40))
        of = Suffixes.of(columns, 7, 8)
        assert of.extractible.tolist() == [1.0] * 20 + [0.0] * 20

        two = Suffixes.of(columns, 7, 2)
        suffixes = [i for i in range(20) if log(0.05) < two.log_q[i] < log(0.5)][:6]
        assert len(suffixes) >= 3, np.exp(two.log_q[:20])
        generator = torch.Generator().manual_seed(0)
        for i in suffixes:
            draws = draw(logits, prompts[i], 2, 2000, generator)
            q = exp(two.log_q[i])
            frequency = float((draws == torch.tensor(written[i][:2])).all(1).double().mean())
            assert abs(frequency - q) < 4 * (q * (1 - q) / 2000) ** 0.5


def draw(logits: Any, prompt: list[int], size: int, n: int, generator: torch.Generator) -> torch.Tensor:
    """Continuations of a prompt, drawn at temperature 1 from the 40 most likely tokens; (n, size)."""
    ids = torch.tensor([prompt]).repeat(n, 1)
    for _ in range(size):
        last = torch.zeros_like(ids, dtype=torch.bool)
        last[:, -1] = True
        top = logits(ids, last).float().topk(40)
        picks = torch.multinomial(top.values.softmax(1), 1, generator=generator)
        ids = torch.cat([ids, top.indices.gather(1, picks)], 1)
    return ids[:, len(prompt) :]
