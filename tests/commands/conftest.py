"""`ask` runs the command `read`; the history of the run that it reads, and the texts of its samples."""

from __future__ import annotations

import pytest
from support.reading import Ask

from wellread import open_run
from wellread.commands import read
from wellread.corpus.read import Corpus
from wellread.corpus.tokenizer import Tokenizer
from wellread.record.history import History
from wellread.run import RunDirectory


@pytest.fixture
def ask(tiny_run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run `read` on the finished run (with `of`, on another run; None: without a run); return its output."""

    def call(*words: object, of: object = tiny_run.path) -> str:
        assert read.main([*([str(of)] if of else []), *map(str, words)]) == 0
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def history(tiny_run: RunDirectory) -> History:
    return open_run(tiny_run.path).history


@pytest.fixture(scope="module")
def texts(corpus: Corpus) -> list[str]:
    """Text of every sample, as the tokenizer decodes it."""
    tokenizer = Tokenizer.load(corpus.tokenizer)
    return [tokenizer.decode(corpus.tokens(i).tolist()) for i in range(corpus.n)]
