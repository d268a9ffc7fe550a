"""The test of marks: by hand, against all redraws, and uniform whatever the model prefers."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import kstest

from eval.marks.statistics import Places, describe, redraw_p
from eval.marks.variants import Variants, places_of
from wellread.corpus.marks import Marks


def places(difference: list[float], first: list[bool], pair: list[int], coin: list[int]) -> Places:
    numbers = np.array(coin)
    return Places(np.array(difference), np.array(first), np.array(pair), numbers, numbers)


def test_excess_by_hand() -> None:
    some = places([3.0, 1.0, -5.0, 2.0], [True, True, False, True], [0, 0, 0, 1], [0, 1, 2, 3])
    # log p of the first form minus the second: 3, 1, 5; the model prefers the first by 3
    assert some.excess.tolist() == [0, -2, -2, 0]


def test_p_equals_all_redraws() -> None:
    excess, coins = np.array([1.5, -0.2, 0.7, 0.4, 0.3]), np.array([4, 4, 2, 0, 1])
    sums = np.array([1.3, 0.7, 0.4, 0.3])
    exact = np.mean([np.dot(signs, sums) >= sums.sum() - 1e-9 for signs in product((-1, 1), repeat=4)])
    assert exact == 1 / 16
    assert abs(redraw_p(excess, coins, 0) - exact) < 4 * (exact * (1 - exact) / 9999) ** 0.5
    assert redraw_p(-excess, coins, 0) == 1
    assert redraw_p(np.zeros(3), np.arange(3), 0) == 1


def test_p_is_uniform_for_a_model_with_strong_preferences() -> None:
    """2,000 draws of the coins of 60 places; by chance this fails for 1 of 1,000 seeds."""
    rng = np.random.default_rng(0)
    pair = np.repeat(np.arange(3), 20)
    oriented = np.array([40.0, -7.0, 0.0])[pair] + rng.standard_cauchy(60)
    ps = []
    for _ in range(2000):
        first = rng.random(60) < 0.5
        some = places(np.where(first, oriented, -oriented).tolist(), first.tolist(), pair.tolist(), [*range(60)])
        ps.append(redraw_p(some.excess, some.coin, int(rng.integers(2**31)), draws=199))
    assert kstest(np.array(ps) - rng.random(2000) / 200, "uniform").pvalue > 0.001


def test_places_without_a_score_are_counted() -> None:
    some = places([2.0, np.nan, 1.0, -1.0], [True, True, False, True], [0] * 4, [0, 1, 2, 3])
    rows = {metric: (row["value"], n) for metric, row, n in describe(some, 0)}
    assert rows["undefined"] == (1, 4)
    assert rows["excess"] == (pytest.approx(2 / 3), 3)
    empty = places([np.nan], [True], [0], [0])
    assert [metric for metric, _, _ in describe(empty, 0)] == ["undefined"]


class Characters:
    """A tokenizer of characters, with a first token 1."""

    def prompts(self, texts: list[str]) -> list[list[int]]:
        return [[1, *map(ord, text)] for text in texts]


def test_each_place_is_scored_with_all_others_as_they_were() -> None:
    text = "a colour and a color, " + "x" * 200
    marks = Marks(
        sample_id=np.array([0, 0]), place=np.array([0, 1]), taken=["color", "color"], left=["colour", "colour"],
        document=np.array([5, 5]), text=[text, text], start=np.array([2, 15]), original=["colour", "color"],
        kind=["text", "text"], breaks=[(), ()],
    )  # fmt: skip
    variants = Variants.of(marks, np.arange(2), Characters(), 1000)  # type: ignore[arg-type]

    def read(number: int) -> tuple[str, str]:
        tokens, targets = variants.tokens(number), variants.targets(number)
        assert tokens[0] == 1
        return "".join(map(chr, tokens[1:])), "".join(map(chr, tokens[targets]))

    assert read(0) == ("a color and a color, " + "x" * 86, "r and a color, " + "x" * 86)
    assert read(1) == ("a colour and a color, " + "x" * 86, "ur and a color, " + "x" * 86)
    assert read(2) == ("a colour and a color, " + "x" * 98, "r, " + "x" * 98)
    assert read(3) == ("a colour and a colour, " + "x" * 98, "ur, " + "x" * 98)
    assert variants.ids.tolist() == [0, 1, 2, 3]
    short = Variants.of(marks, np.array([1]), Characters(), 8)  # type: ignore[arg-type]
    assert ["".join(map(chr, short.tokens(i))) for i in (2, 3)] == ["or, xxxx", "our, xxx"]
    some = places_of(marks, np.arange(2), np.array([-1.0, -4.0, -2.0, -1.0]))
    assert some.difference.tolist() == [3, -1]
    assert some.first.tolist() == [True, True]
    assert some.pair.tolist() == [0, 0]
    assert some.coin.tolist() == [0, 1]
    assert some.document.tolist() == [0, 0]
