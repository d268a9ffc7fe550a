"""The bench of generations: what it measures of the model `tiny`, and its exit code."""

from __future__ import annotations

import json

import pytest

from bench import generations


def test_both_sides_write_the_same_texts_and_are_measured() -> None:
    times = generations.generation(new_tokens=4, repeats=1)
    assert list(times) == ["greedy_s", "cached_s", "greedy_over_cached"]
    assert min(times.values()) > 0
    assert times["greedy_over_cached"] == times["greedy_s"] / times["cached_s"]


@pytest.mark.parametrize(("ratio", "code"), [(5.0, 0), (4.99, 1)])
def test_the_exit_code(
    ratio: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[tuple[int, int]] = []

    def generation(new_tokens: int, repeats: int) -> dict[str, float]:
        measured.append((new_tokens, repeats))
        return {"greedy_over_cached": ratio}

    monkeypatch.setattr(generations, "generation", generation)
    monkeypatch.setattr(generations, "saturation", lambda: {"fits_s": 1.0})
    monkeypatch.setattr("sys.argv", ["bench.generations", "--json"])
    assert generations.main() == code
    assert measured == [(200, 3)]
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"greedy_over_cached": ratio, "fits_s": 1.0}
    assert ("the goal is 5" in printed.err) == bool(code)


def test_texts_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wellread.models.continuations.continuations", lambda *_, **__: [[1]] * 8)
    with pytest.raises(AssertionError, match="the texts differ"):
        generations.generation(new_tokens=2, repeats=1)
