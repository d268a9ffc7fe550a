"""The rotation over sealed documents: balanced at any time, one sample per document, the same for the same key."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from wellread.corpus.merge import merge
from wellread.corpus.read import Corpus
from wellread.corpus.shards import Sample, Shard, shard_path, write_shard
from wellread.train.rotation import Rotation

TRAINABLE = 5
SIZES = {100: 1, 101: 3, 102: 1, 103: 2, 104: 4, 105: 1, 106: 1}
"""Sealed documents, and how many samples each has."""


@pytest.fixture
def windows(tmp_path: Path) -> Corpus:
    """A corpus whose sealed documents have several samples, not next to each other."""
    documents = [*range(TRAINABLE), *sorted(SIZES, reverse=True)]
    documents += [document for document, size in SIZES.items() for _ in range(size - 1)]
    samples = [
        Sample(tokens=[5, 6, 7], spans=[(1, 3)], document=d, sealed=d >= 100, set_id=0, row=i, category="")
        for i, d in enumerate(documents)
    ]
    write_shard(shard_path(tmp_path, 0), Shard(samples))
    merge(tmp_path, sets=("synthetic",), vocab_size=64, settings={}, extra={})
    return Corpus.open(tmp_path)


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_documents_and_their_samples_take_turns(windows: Corpus, count: int) -> None:
    rotation, documents = Rotation(windows, seed=0), windows.samples()["document"].to_numpy()
    measured: Counter[int] = Counter()
    samples: Counter[int] = Counter()
    for turn in range(40):
        ids = rotation.take(turn * count, count)
        assert (np.diff(ids) > 0).all()
        assert ids.min() >= TRAINABLE
        assert len(set(documents[ids])) == count  # one sample per document
        measured.update(documents[ids].tolist())
        samples.update(ids.tolist())
        assert max(measured.values()) - min(measured[d] for d in SIZES) <= 1
    for document, size in SIZES.items():  # and each sample of a document equally often
        times = [samples[i] for i in np.flatnonzero(documents == document).tolist()]
        assert len(times) == size
        assert max(times) - min(times) <= 1


def test_more_samples_than_documents_are_one_per_document(windows: Corpus) -> None:
    assert len(Rotation(windows, seed=0).take(0, 256)) == len(SIZES)


def test_the_key_is_the_seed(windows: Corpus) -> None:
    turns = [[Rotation(windows, seed).take(4 * i, 4).tolist() for i in range(10)] for seed in (0, 0, 1)]
    assert turns[0] == turns[1] != turns[2]


def test_without_sealed_samples(tmp_path: Path) -> None:
    samples = [Sample(tokens=[5, 6], spans=[(1, 2)], document=1, sealed=False, set_id=0, row=0, category="")]
    write_shard(shard_path(tmp_path, 0), Shard(samples))
    merge(tmp_path, sets=("synthetic",), vocab_size=64, settings={}, extra={})
    assert Rotation(Corpus.open(tmp_path), seed=0).take(0, 4).tolist() == []
