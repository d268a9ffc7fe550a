"""Membership scores: the numeric fixture, and edge cases."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from support.small_evaluations import tokens_with

from eval.membership.gradients import Norms
from eval.membership.scores import SCORES, Inputs, columns, needs
from wellread.errors import UserError
from wellread.models.score import token_columns
from wellread.tokens import COLUMNS, Tokens

IDS = torch.tensor([3, 7, 1, 4, 10, 2, 0, 5, 8])
TEXT = "Once upon a time there was a red ball."
LOGITS = [[3 * math.sin(0.7 * (t + 1) * (v + 1)) for v in range(11)] for t in range(8)]
REFERENCE = [[2 * math.cos(0.3 * (t + 2) * (v + 1)) for v in range(11)] for t in range(8)]
EXPECTED = {
    "loss": -5.579188,
    "zlib": -0.123982,
    "reference": -2.606181,
    "ez": 0.013500,
    "min_k_0.2": -6.643923,
    "min_k_0.3": -6.617984,
    "min_k_0.5": -6.577178,
    "min_k++_0.2": -7.295710,
    "min_k++_0.3": -7.201199,
    "min_k++_0.5": -6.696586,
    "min_k++_1": -5.175783,
}


def fixture(logits: Any, dtype: torch.dtype) -> Tokens:
    values = {
        name: column.numpy() for name, column in token_columns(torch.tensor(logits, dtype=dtype), IDS[1:]).items()
    }
    return Tokens(sample_id=np.array([0]), bounds=np.array([0, 8]), **values)


def sample(**values: Any) -> Tokens:
    """One sample; a column that is not given is 0."""
    size = len(next(iter(values.values())))
    every: Any = {name: np.zeros(size, kind) for name, kind in COLUMNS.items()}
    every |= {name: np.array(column, COLUMNS[name]) for name, column in values.items()}
    return Tokens(sample_id=np.array([0]), bounds=np.array([0, size]), **every)


ROUNDED = 2e-6
"""Largest error of min_k++ from columns in fp32. Units in the last place are 5e-7 for log p, 1e-7 for the mean and 6e-8
for the deviation. A deviation of 0.7 magnifies the first two, and 7 deviations the last one: 1.4e-6 for one unit each.
0.5e-6 more are for the six decimals of the expected values."""


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_numeric_fixture(dtype: torch.dtype) -> None:
    tokens, length = fixture(LOGITS, dtype), len(zlib.compress(TEXT.encode()))
    assert length == 45
    inputs = Inputs(tokens=tokens, zlib=np.array([length]), reference=fixture(REFERENCE, dtype))
    scores = columns(["loss", "zlib", "reference", "ez", "min_k", "min_k++"], [0.2, 0.3, 0.5, 1])
    values = {column.name: column.values(inputs)[0] for column in scores}
    for name, value in EXPECTED.items():
        is_rounded = name.startswith("min_k++") and dtype == torch.float32
        assert values[name] == pytest.approx(value, abs=ROUNDED if is_rounded else 1e-6, rel=0), name
    assert values["min_k_1"] == pytest.approx(values["loss"], abs=1e-12)
    assert math.exp(-values["loss"]) == pytest.approx(264.856329, rel=1e-6)


def test_the_lowest_tokens() -> None:
    ten = sample(logp=[-1, -9, -3, -4, -5, -6, -7, -8, -2, -10])
    one, none = sample(logp=[-3]), sample(logp=[])
    min_k = SCORES["min_k"].values
    assert min_k(Inputs(tokens=ten), 0.3).tolist() == [-9]  # 0.3 * 10 is 3 tokens, although it is 2.9999999999999996
    assert min_k(Inputs(tokens=ten), 0.05).tolist() == [-10]  # k m < 1: one token
    assert min_k(Inputs(tokens=ten), 1).tolist() == [-5.5]
    assert min_k(Inputs(tokens=one), 0.1).tolist() == [-3]  # m = 1
    both = Tokens.joined([none, one, none, ten])
    values = min_k(Inputs(tokens=both), 0.2)
    assert np.isnan(values[[0, 2]]).all()
    assert values[[1, 3]].tolist() == [-3, -9.5]


def test_tokens_without_deviation() -> None:
    logits = torch.ones(3, 7)
    equal = {name: column.numpy() for name, column in token_columns(logits, torch.tensor([0, 1, 2])).items()}
    tokens = Tokens(sample_id=np.array([0]), bounds=np.array([0, 3]), **equal)
    assert SCORES["min_k++"].values(Inputs(tokens=tokens), 0.5).tolist() == [0]
    impossible = sample(logp=[-900.0, 0], mu=[0, 0], sigma=[0, 0])
    assert SCORES["min_k++"].values(Inputs(tokens=impossible), 0.5).tolist() == [-np.inf]


def test_ez_counts_only_errors() -> None:
    ez = SCORES["ez"].values
    target = sample(logp=[-1, -2, -3, 0], rank=[1, 4, 2, 0])
    assert ez(Inputs(tokens=target, reference=sample(logp=[-2, -1, -5, -9])), 1).tolist() == [3]  # (1 + 2) / 1
    assert ez(Inputs(tokens=target, reference=sample(logp=[-2, -3, -5, 9])), 1).tolist() == [np.inf]  # nothing lost
    certain = sample(logp=[-1, -2], rank=[0, 0])
    assert np.isnan(ez(Inputs(tokens=certain, reference=certain), 1)).all()  # no token of another rank
    assert ez(Inputs(tokens=target, reference=target), 1).tolist() == [np.inf]


@pytest.mark.parametrize("name", SCORES)
def test_what_is_not_a_number_stays_so(name: str) -> None:
    wrong = sample(logp=[-1, np.nan, -2], rank=[1, 1, 1], sigma=[1, 1, 1])
    inputs = Inputs(tokens=wrong, zlib=np.array([9]), lowercase=wrong, reference=wrong, prefixed=wrong,
                    gradients=Norms(sample_id=np.array([0]), norm=np.array([np.nan])))  # fmt: skip
    assert np.isnan(SCORES[name].values(inputs, 0.4)).all()


def test_a_text_that_the_model_is_certain_of_has_no_ratio() -> None:
    certain, other = tokens_with(np.array([1]), np.array([0.0])), tokens_with(np.array([1]), np.array([-1.0]))
    assert np.isnan(SCORES["lowercase"].values(Inputs(tokens=certain, lowercase=other), 1)).all()
    assert SCORES["lowercase"].values(Inputs(tokens=other, lowercase=other), 1).tolist() == [1]


def test_infinite_values_are_undefined_except_of_ez() -> None:
    """The same for a run and for any model: a diverged model's samples are counted, not ranked."""
    diverged, learned = sample(logp=[-np.inf, -1]), sample(logp=[-1, -2], rank=[1, 1])
    loss, ez = columns(["loss", "ez"], [])
    assert np.isnan(loss.values(Inputs(tokens=diverged))).all()
    assert ez.values(Inputs(tokens=learned, reference=sample(logp=[-2, -3]))).tolist() == [np.inf]  # nothing lost


def test_names_and_needs() -> None:
    scores = columns(["min_k", "loss", "ez", "zlib"], [0.1, 0.25])
    assert [column.name for column in scores] == ["min_k_0.1", "min_k_0.25", "loss", "ez", "zlib"]
    assert needs(scores) == ["zlib", "reference"]
    with pytest.raises(UserError, match=r"--scores lost: not a score; choose from loss, zlib, .*ez, recall, gradnorm$"):
        columns(["lost"], [0.1])
