"""The history of the finished run `tiny_run`, and the texts of its samples."""

from __future__ import annotations

import pytest

from wellread import open_run
from wellread.corpus.read import Corpus
from wellread.corpus.tokenizer import Tokenizer
from wellread.record.history import History
from wellread.run import RunDirectory


@pytest.fixture(scope="module")
def history(tiny_run: RunDirectory) -> History:
    return open_run(tiny_run.path).history


@pytest.fixture(scope="module")
def texts(corpus: Corpus) -> list[str]:
    """Text of every sample, as the tokenizer decodes it."""
    tokenizer = Tokenizer.load(corpus.tokenizer)
    return [tokenizer.decode(corpus.tokens(i).tolist()) for i in range(corpus.n)]
