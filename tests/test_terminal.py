"""Tables and progress for people."""

import pytest

from wellread import terminal
from wellread.terminal import progress, say_narrow_table


def test_a_wide_table_becomes_several_of_at_most_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    interval = "0.711 [0.664, 0.756]"
    heads = ["step", "AUC read", "AUC unread", "labels shuffled", "TPR at 10% FPR", "loss read", "loss sealed"]
    rows = [[step, interval, interval, interval, 0.2722, 5.6649, 5.8726] for step in (50, 12_000)]
    say_narrow_table(heads, rows)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines] == ["step", "50", "12,000"] * 2
    assert lines[4].split() == ["50", "0.2722", "5.6649", "5.8726"]


def test_the_parts_of_a_wide_table_repeat_what_distinguishes_their_rows(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [[9, "read", "x" * 40, "y" * 30, 1], [9, "sealed", "x" * 40, "y" * 30, None], [9, "age", "x", None, None]]
    say_narrow_table(["step", "group", "first", "second", "third"], rows)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:4]] == [["step", "group"], ["9", "read"], ["9", "sealed"], ["9", "age"]]
    assert [line.split()[:2] for line in lines[4:]] == [["step", "group"], ["9", "read"], ["9", "sealed"]]


def test_a_narrow_table_stays_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    say_narrow_table(["step", "loss"], [[1, 0.5]])
    say_narrow_table(["step"], [[1]])
    assert capsys.readouterr().out == "step    loss\n   1  0.5000\nstep\n   1\n"


@pytest.mark.parametrize(
    ("total", "lines"),
    [
        (2_000, "tokenizing: 300 of 2,000 (15%)\ntokenizing: 600 of 2,000 (30%)\n"),
        (None, "tokenizing: 300\ntokenizing: 600\n"),
    ],
)
def test_a_task_in_a_pipe_says_how_far_it_is_every_half_minute(
    total: int | None, lines: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now)
    with progress("tokenizing", total) as show:
        for number in range(100, 900, 100):
            now += 11
            show(number)
    assert capsys.readouterr().err == lines
