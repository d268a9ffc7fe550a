"""The progress bar on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from wellread.train.watch import monitor


def test_the_bar_shows_no_number_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(monitor, "console", lambda: Console(file=written, force_terminal=True, width=120))
    bar, task = monitor._progress_bar(10, 0)
    bar.refresh()
    bar.stop()
    assert "first step" in written.getvalue()
    assert "nan" not in written.getvalue().lower()
    assert bar.tasks[task].fields["rate"] == ""
