"""Files of token columns: what is read is what was written, in parts, for one model only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.small_evaluations import tokens_with

from eval.token_store import TokenFile
from wellread.errors import UserError
from wellread.tokens import COLUMNS, Tokens

KEY = {"record_head": "aa", "checkpoint": "bb"}


def tokens(*ids: int) -> Tokens:
    return tokens_with(np.array(ids), -np.array(ids, float))


def means(file: TokenFile, *ids: int) -> list[float]:
    part = file.read(np.array(ids, dtype=np.int64))
    assert part.sample_id.tolist() == list(ids)
    return (-part.means(part.logp)).tolist()


def test_it_reads_what_was_written(tmp_path: Path) -> None:
    file = TokenFile(tmp_path / "tokens" / "step-1.parquet", KEY)
    assert file.sample_id.size == 0
    file.write(iter([tokens(1, 5), tokens(9)]))
    assert TokenFile(file.path, KEY).sample_id.tolist() == [1, 5, 9]
    file.write(iter([tokens(3), tokens(4, 2)]))
    assert file.sample_id.tolist() == [1, 2, 3, 4, 5, 9]
    assert means(file, 9, 2, 1) == [9, 2, 1]
    assert means(file) == []
    with pytest.raises(KeyError):
        file.read(np.array([1, 7]))
    assert [path.name for path in file.path.parent.iterdir()] == ["step-1.parquet"]
    schema = pq.read_schema(file.path)
    assert schema.names == ["sample_id", *COLUMNS]
    assert [str(schema.field(name).type) for name in COLUMNS] == [
        "list<element: float>", "list<element: int32>", *["list<element: float>"] * 3
    ]  # fmt: skip


def test_another_key_has_nothing(tmp_path: Path) -> None:
    path = tmp_path / "step-1.parquet"
    TokenFile(path, KEY).write(iter([tokens(1)]))
    other = TokenFile(path, KEY | {"checkpoint": "cc"})
    assert other.sample_id.size == 0
    other.write(iter([tokens(2)]))
    assert TokenFile(path, KEY).sample_id.size == 0
    assert other.sample_id.tolist() == [2]


def test_an_interrupted_process_keeps_its_parts(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Tokens]:
        yield tokens(4, 5)
        yield tokens(6)
        raise KeyboardInterrupt

    path = tmp_path / "step-1.parquet"
    TokenFile(path, KEY).write(iter([tokens(1)]))
    with pytest.raises(KeyboardInterrupt):
        TokenFile(path, KEY).write(interrupted())
    file = TokenFile(path, KEY)
    assert file.sample_id.tolist() == [1, 4, 5, 6]
    assert means(file, 4, 1) == [4, 1]
    file.recover()
    assert pq.read_table(path)["sample_id"].to_pylist() == [1, 4, 5, 6]
    assert not path.with_suffix(".parts").exists()
    with pytest.raises(KeyboardInterrupt):
        file.write(interrupted())
    other = TokenFile(path, KEY | {"checkpoint": "cc"})
    other.recover()
    assert other.sample_id.size == 0
    assert not path.with_suffix(".parts").exists()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "step-1.parquet"
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(UserError, match=r"step-1\.parquet: not a readable Parquet file; delete it"):
        _ = TokenFile(path, KEY).sample_id


def test_columns_of_samples() -> None:
    both = Tokens.joined([tokens(7, 3), tokens(5)])
    assert both.at(np.array([5, 7])).logp.tolist() == [-5, -5, -7, -7]
    assert both.n_targets.tolist() == [2, 2, 2]
    assert Tokens.joined([]).sample_id.size == 0
    empty = Tokens(sample_id=np.array([1, 2]), bounds=np.array([0, 0, 1]), **{n: np.ones(1, k) for n, k in COLUMNS.items()})  # fmt: skip # noqa: E501
    assert empty.sums(empty.logp).tolist() == [0, 1]
    assert np.isnan(empty.means(empty.logp)[0])
