"""`ask` runs the command `read`."""

from __future__ import annotations

import pytest
from support.reading import Ask

from wellread.commands import read
from wellread.run import RunDirectory


@pytest.fixture
def ask(tiny_run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run `read` on the finished run (with `of`, on another run; None: without a run); return its output."""

    def call(*words: object, of: object = tiny_run.path) -> str:
        assert read.main([*([str(of)] if of else []), *map(str, words)]) == 0
        return capsys.readouterr().out

    return call
