"""Sizes that shapes are rounded up to: few, and at most an eighth of each is padding."""

import numpy as np
import pytest

from wellread.corpus.batch import collate
from wellread.corpus.padding import padded
from wellread.corpus.read import Corpus

MANY = 1 << 30


@pytest.mark.parametrize(
    ("size", "result"),
    [
        (1, 8), (8, 8), (9, 16), (57, 64), (65, 72), (121, 128), (128, 128), (129, 144), (255, 256), (256, 256),
        (257, 288), (511, 512), (513, 576), (2047, 2048), (2049, 2304),
    ],
)  # fmt: skip
def test_sizes(size: int, result: int) -> None:
    assert padded(size, MANY) == result


def test_there_are_few_sizes_and_little_padding() -> None:
    sizes = np.arange(1, 4097)
    rounded = np.array([padded(int(size), MANY) for size in sizes])
    assert (rounded % 8 == 0).all()
    assert (rounded >= sizes).all()
    assert ((rounded - sizes)[sizes > 64] / rounded[sizes > 64]).max() < 1 / 8
    assert [len(set(rounded[:most])) for most in (256, 2048, 4096)] == [24, 48, 56]


@pytest.mark.parametrize(("size", "result"), [(1, 64), (64, 64), (65, 128), (129, 192), (2047, 2048), (2049, 2112)])
def test_sizes_on_a_gpu(size: int, result: int) -> None:
    assert padded(size, MANY, "cuda") == result


def test_a_size_is_never_above_its_limit_nor_below_itself() -> None:
    assert (padded(130, 140), padded(130, 130), padded(250, 256), padded(0, 100)) == (140, 130, 256, 0)


def test_widths_of_batches(corpus: Corpus) -> None:
    """The forward pass reads all columns but the last: at most as many as a sample may have."""
    ids = np.arange(corpus.n)
    lengths, computed = corpus.lengths(ids), [collate(corpus, ids[i : i + 1]).tokens.shape[1] - 1 for i in ids]
    assert computed == [padded(int(length) - 1, 256) for length in lengths]
    assert (max(lengths), max(computed)) == (256, 256)
    assert len(set(computed)) <= 24
    on_gpu = [collate(corpus, ids[i : i + 1], "cuda") for i in ids]
    assert {batch.tokens.shape[1] - 1 for batch in on_gpu} <= {64, 128, 192, 256}
    assert [batch.digests() for batch in on_gpu] == [collate(corpus, ids[i : i + 1]).digests() for i in ids]
