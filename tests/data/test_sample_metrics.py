"""Text metrics that are added to a compiled corpus: their values, its key and hash, and who sees them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from finetune.prepare import prepare
from wellread.config import RunConfig
from wellread.corpus.read import Corpus
from wellread.corpus.tokenizer import Tokenizer
from wellread.data import sample_metrics
from wellread.data.text_metrics import NAMES, measure
from wellread.order import metrics
from wellread.record import verify_corpus
from wellread.record.findings import Findings


class Words:
    """A tokenizer of whole words: 0 and 1 are special."""

    texts = ("<s>", "</s>", "A", " dog", " ran.", "It", " sat.")

    def decode(self, ids: list[int]) -> str:
        return "".join(self.texts[i] for i in ids)


@pytest.mark.parametrize(
    ("tokens", "starts", "text"),
    [
        ([0, 2, 3, 4, 1], [0], "A dog ran."),
        ([2, 3, 4, 1, 5, 6, 1], [0, 4], "A dog ran.\n\nIt sat."),
        ([2, 3, 4, 5, 6], [0, 3], "A dog ran.\n\nIt sat."),
        ([0, 2, 3, 4, 0, 0, 5, 6, 0], [0], "A dog ran.\n\nIt sat."),
        ([1, 0, 1], [0], ""),
        ([], [0], ""),
    ],
)
def test_text_of_a_sample(tokens: list[int], starts: list[int], text: str) -> None:
    words: Tokenizer = Words()  # type: ignore[assignment]
    ids = np.array(tokens, dtype=np.uint16)
    assert sample_metrics.text_of(ids, np.array(starts), np.array([0, 1]), words) == text


def test_a_corpus_gets_metrics(corpus: Corpus, texts: list[str], tmp_path: Path, root: Path) -> None:
    folder = tmp_path / corpus.path.name
    shutil.copytree(corpus.path, folder)
    assert corpus.metrics == ()
    assert prepare(RunConfig.of(corpora=str(tmp_path), metrics=True)) == folder  # the key is the same
    measured = Corpus.open(folder)
    assert (measured.hash, measured.meta["settings"]) == (corpus.hash, corpus.meta["settings"])
    assert measured.metrics == NAMES
    special = re.compile("|".join(map(re.escape, Tokenizer.load(corpus.tokenizer).backend.all_special_tokens)))
    expected = measure([special.sub("", text) for text in texts])
    for place, name in enumerate(NAMES):
        assert np.array_equal(measured.metric(name), expected[:, place]), name
    assert metrics.column(measured, "words", "--order").tolist() == expected[: corpus.n_trainable, 0].tolist()
    findings = Findings()
    verify_corpus.check(findings, measured)
    assert findings.problems == []

    before = (folder / "corpus.json").stat().st_mtime_ns
    assert not sample_metrics.add(folder)  # nothing is measured again
    assert (folder / "corpus.json").stat().st_mtime_ns == before
