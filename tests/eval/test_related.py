"""Windows of a stream share documents that only one of them begins with; what was read of them is known by rows."""

from pathlib import Path
from typing import Any

import numpy as np

from eval.groups import Groups
from eval.membership.sequential import Sequential
from eval.related import Related
from wellread.corpus.merge import merge
from wellread.corpus.read import Corpus
from wellread.corpus.shards import shard_path, write_shard
from wellread.corpus.windows import Document, fill


def windows(path: Path) -> Corpus:
    """Windows of 7 tokens, over documents of 7, 10, 11, 7 and 14 with the token before each."""
    lengths = [6, 9, 10, 6, 13]
    documents = [
        Document(row=i + 1, tokens=np.arange(3, 3 + n, dtype=np.uint32), id=100 + i, sealed=False)
        for i, n in enumerate(lengths)
    ]
    path.mkdir()
    write_shard(shard_path(path, 0), fill(documents, bos=1, seq_len=8, packing="stream"))
    merge(path, sets=("made up",), vocab_size=64, settings={}, extra={"sets": [{"name": "made up"}]})
    return Corpus.open(path)


def test_windows_that_share_a_document_with_a_read_one_are_not_unread(tmp_path: Path) -> None:
    corpus = windows(tmp_path / "corpus")
    assert corpus.samples().column("rows").to_pylist() == [[1], [2], [2, 3], [3], [4], [5], [5]]
    documents = corpus.samples().column("document").to_numpy()
    assert documents.tolist() == [100, 101, 101, 102, 103, 104, 104]
    first_read = np.array([9, 9, 0, 9, 5, 9, 9])  # the third window is read first, then the fifth
    assert Related.of(corpus, documents).earliest(first_read).tolist() == [9, 0, 0, 0, 5, 9, 9]
    groups = Groups(corpus, documents, np.minimum(first_read, 6), 10, 2000, 0)
    assert groups.at(1)["unread"].tolist() == [0, 4, 5, 6]  # not 3, which ends the document of the third window


def test_nor_in_a_corpus_in_a_known_order(tmp_path: Path) -> None:
    corpus = windows(tmp_path / "corpus")
    settings: dict[str, Any] = {"max_samples": 100, "max_tokens": 2048, "seed": 0, "recall": False}
    order = Sequential(name=str(corpus.path), order="sequential", batch_size=1, **settings)
    compared = order._draw(3, tmp_path)
    assert compared.documents[compared.members].tolist() == [100, 101, 101]
    assert compared.documents[compared.nonmembers].tolist() == [103, 104, 104]
