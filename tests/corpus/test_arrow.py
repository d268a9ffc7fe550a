"""Columns from numpy's buffers are equal to those of pyarrow.array."""

import subprocess
import sys

import numpy as np
import pyarrow
import pytest
from support.programs import ROOT

from wellread.corpus import arrow

NAMES = ["Zürich", "", "a b", "Zürich", "日本", "a b"]


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float32])
@pytest.mark.parametrize("values", [np.arange(7), np.arange(14)[::2], np.array([], dtype=np.int64), [3, -1]])
def test_numbers(values: np.ndarray, dtype: type) -> None:
    column = arrow.numbers(values, dtype)
    column.validate(full=True)
    assert column.equals(pyarrow.array(np.asarray(values, dtype=dtype)))


@pytest.mark.parametrize("n", [0, 1, 8, 9, 300])
def test_flags(n: int) -> None:
    values = np.random.default_rng(n).random(n) < 0.5
    column = arrow.flags(values)
    column.validate(full=True)
    assert column.equals(pyarrow.array(values, pyarrow.bool_()))


def test_digests() -> None:
    values = [bytes([i] * 16) for i in range(5)]
    assert arrow.digests(b"".join(values), 16).equals(pyarrow.array(values, pyarrow.binary(16)))
    assert len(arrow.digests(b"", 16)) == 0


@pytest.mark.parametrize("values", [NAMES, [], [""]])
def test_words_and_texts(values: list[str]) -> None:
    for column in (arrow.texts(values), arrow.words(np.array(values, dtype=np.str_))):
        column.validate(full=True)
        assert column.to_pylist() == values
    assert arrow.words(np.array(NAMES)).equals(pyarrow.array(NAMES).dictionary_encode())


def test_categories_and_lists() -> None:
    column = arrow.categories(np.array([True, False, True]), ["trainable", "sealed"])
    assert column.to_pylist() == ["sealed", "trainable", "sealed"]
    column = arrow.lists(np.arange(5), [2, 0, 3], np.int64)
    column.validate(full=True)
    assert column.equals(pyarrow.array([[0, 1], [], [2, 3, 4]], pyarrow.list_(pyarrow.int64())))


def test_a_record_is_written_without_pandas() -> None:
    """Importing pandas would cost memory in every rank."""
    code = """
import sys
import numpy as np
from wellread.record.writer import RecordedBatch, to_parquet
one = np.array([1])
batch = RecordedBatch(batch_id=0, sample_ids=one, epochs=one, n_targets=one, losses=one * 0.5, digests=[bytes(16)])
to_parquet([batch])
assert "pandas" not in sys.modules
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
