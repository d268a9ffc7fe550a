"""The rotation over sealed documents: balanced at any time, one sample per document, the same for the same key."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from wellread.corpus.merge import merge
from wellread.corpus.read import Corpus
from wellread.corpus.shards import Sample, Shard, shard_path, write_shard
from wellread.train.rotation import REPEATS, Rotation, measured_steps

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


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_documents_and_their_samples_take_turns(windows: Corpus, count: int) -> None:
    rotation, documents = Rotation(windows, 0, count=count, measurements=1000), windows.samples()["document"].to_numpy()
    panel = len(SIZES) // count * count  # of seven documents, six take turns in pairs
    measured: Counter[int] = Counter()
    samples: Counter[int] = Counter()
    for number in range(12 * panel // count):
        ids = rotation.take(number)
        assert (np.diff(ids) > 0).all()
        assert ids.min() >= TRAINABLE
        assert len(set(documents[ids])) == count  # one sample per document
        measured.update(documents[ids].tolist())
        samples.update(ids.tolist())
        assert max(measured.values()) - min(measured.values()) <= 1
    assert len(measured) == panel
    for document in measured:  # and each sample of a document equally often
        times = [samples[i] for i in np.flatnonzero(documents == document).tolist()]
        assert len(times) == SIZES[document]
        assert max(times) - min(times) <= 1


@pytest.mark.parametrize(
    ("count", "measurements", "panel"), [(2, 3, 2), (2, 8, 4), (1, 20, 5), (1, 1000, 7), (9, 5, 7)]
)
def test_as_many_documents_as_are_measured_four_times(
    windows: Corpus, count: int, measurements: int, panel: int
) -> None:
    """With fewer measurements, or few documents, each is measured as often as possible."""
    rotation, documents = Rotation(windows, 3, count=count, measurements=measurements), windows.samples()["document"]
    ids = np.concatenate([rotation.take(number) for number in range(measurements)])
    times = Counter(documents.to_numpy()[ids].tolist())
    assert len(times) == panel
    assert min(times.values()) >= min(REPEATS, measurements)


def test_rounds_have_their_own_order(windows: Corpus) -> None:
    """So two documents are not always measured together."""
    rotation, documents = Rotation(windows, 0, count=2, measurements=100), windows.samples()["document"].to_numpy()
    pairs = {tuple(documents[rotation.take(number)]) for number in range(60)}
    assert len(pairs) > 10


def test_more_samples_than_documents_are_one_per_document(windows: Corpus) -> None:
    assert len(Rotation(windows, 0, count=256, measurements=7).take(0)) == len(SIZES)


def test_the_key_is_the_seed(windows: Corpus) -> None:
    turns = [[Rotation(windows, key, count=4, measurements=9).take(i).tolist() for i in range(9)] for key in (0, 0, 1)]
    assert turns[0] == turns[1] != turns[2]


def test_a_run_measures_at_checkpoints_and_early(windows: Corpus) -> None:
    assert sorted(measured_steps((0, 50, 99), 99, None)) == [0, 4, 16, 50, 64, 99]
    assert sorted(measured_steps((0, 4), 4, None)) == [0, 4]
    assert sorted(measured_steps((0, 9), 9, 3)) == [0, 3, 4, 6, 9]
    assert measured_steps((0, 9), 9, 1) == {*range(10)}


def test_without_sealed_samples(tmp_path: Path) -> None:
    samples = [Sample(tokens=[5, 6], spans=[(1, 2)], document=1, sealed=False, set_id=0, row=0, category="")]
    write_shard(shard_path(tmp_path, 0), Shard(samples))
    merge(tmp_path, sets=("synthetic",), vocab_size=64, settings={}, extra={})
    assert Rotation(Corpus.open(tmp_path), seed=0, count=4, measurements=9).take(0).tolist() == []
