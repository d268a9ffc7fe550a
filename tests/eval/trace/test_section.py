"""Trace in the report: coverage and pieces by hand; the long test traces a copied sample to its batch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from eval.generations.prompts import Prompt
from eval.trace.section import Traced, _coverage, pieces
from wellread.record.trace import Match, Span


def traced(document: int, text: str, n_tokens: int, *ranges: tuple[int, int]) -> Traced:
    """A text of tokens with one character each."""
    spans = [Span(text[a:b], a, b, Match(a, b, np.array([0]))) for a, b in ranges]
    return Traced(Prompt(document, document, [1], [2]), text, spans, n_tokens)


def test_coverage_is_a_ratio_with_the_interval_of_a_ratio() -> None:
    """4 of 10 and 1 of 20 tokens: 5 / 30; residuals of inside - share * tokens are 7/3 and -7/3."""
    group = [traced(0, "a" * 10, 10, (0, 3), (2, 4)), traced(1, "b" * 20, 20, (19, 20))]
    name, texts, tokens, share, low, high, longest = _coverage("greedy", group)
    assert (name, texts, tokens, longest) == ("greedy", 2, 30, 3)
    assert share == pytest.approx(5 / 30)
    # stderr: residuals / 15, so 7 / 45 each; sqrt(2 * (7 / 45)^2 * 2) / 2 = 7 / 45
    assert (low, high) == (0.0, pytest.approx(5 / 30 + 1.96 * 7 / 45))


def test_no_tokens_have_no_coverage() -> None:
    assert _coverage("sampled", [traced(0, "", 0)]) == ["sampled", 1, 0, None, None, None, 0]


def test_pieces_of_a_text() -> None:
    assert pieces(traced(0, "abcdefgh", 8, (0, 2), (4, 6), (5, 7))) == [
        ("ab", True), ("cd", False), ("efg", True), ("h", False)
    ]  # fmt: skip
    assert pieces(traced(0, "abc", 3)) == [("abc", False)]
    assert pieces(traced(0, "abc", 3, (0, 3))) == [("abc", True)]
    assert pieces(traced(0, "", 0)) == []
    long = pieces(traced(0, "x" * 700, 700, (590, 650)))
    assert [(len(text), inside) for text, inside in long] == [(590, False), (11, True)]


def test_without_checkpoints_there_is_nothing_to_trace() -> None:
    from eval.trace.section import section

    facts: Any = SimpleNamespace(checkpoints=[])
    assert section(facts, []) is None
