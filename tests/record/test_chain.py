"""The hash chain: heads computed by hand, and what they depend on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from support.records import ORDER, START, recorded_batch, write_record

from wellread.record.chain import genesis, link
from wellread.record.reader import Record
from wellread.record.writer import RecordWriter


def test_the_first_head_binds_corpus_and_order() -> None:
    identity = {"kind": "shuffle", "seed": 3, "n": 10, "batch_size": 4, "version": 1}
    assert ORDER.identity() == identity
    text = '["corpus", {"batch_size": 4, "kind": "shuffle", "n": 10, "seed": 3, "version": 1}]'
    assert hashlib.sha256(text.encode()).hexdigest() == START
    assert genesis("other", identity) != START
    assert genesis("corpus", identity | {"seed": 4}) != START


def test_a_link_by_hand() -> None:
    """sha256(32 bytes of head | batch id | ids | digests), every integer as 8 little-endian bytes."""
    content = bytes.fromhex("ab" * 32) + bytes.fromhex("0201000000000000" + "0500000000000000" + "0700000000000000")
    expected = hashlib.sha256(content + b"x" * 32).hexdigest()
    assert link("ab" * 32, 258, np.array([5, 7]), b"x" * 32) == expected
    assert link("ab" * 32, 258, np.array([5, 7], dtype=np.int32), b"x" * 32) == expected
    assert link("ab" * 32, 258, np.array([7, 5]), b"x" * 32) != expected


def test_the_head_can_be_recomputed_from_the_rows(tmp_path: Path) -> None:
    writer = write_record(tmp_path)
    head = START
    for i in range(5):
        table = Record.open(tmp_path).table(batches=(i, i + 1))
        head = link(head, i, table["sample_id"].to_numpy(), b"".join(table["digest"].to_pylist()))
    assert head == writer.head == Record.open(tmp_path).head


@pytest.mark.parametrize("flushes", [(5,), (1, 2, 3, 4, 5), (2, 5)])
def test_content_does_not_depend_on_parts(flushes: tuple[int, ...], tmp_path: Path) -> None:
    a, b = write_record(tmp_path / "a"), write_record(tmp_path / "b", flushes=flushes)
    assert a.head == b.head
    assert Record.open(tmp_path / "a").table().equals(Record.open(tmp_path / "b").table())
    for batches in ((0, 5), (1, 4), (2, 3), (4, 5), (3, 3)):
        tables = [Record.open(tmp_path / name).table(["sample_id"], batches) for name in "ab"]
        assert tables[0].equals(tables[1])
        assert tables[0].num_rows == 4 * (batches[1] - batches[0])


def test_losses_are_not_part_of_the_chain(tmp_path: Path) -> None:
    """The head depends on the tokens, not on losses, which another machine may round differently."""
    heads = []
    for name, digest in (("a", b"d"), ("b", b"d"), ("c", b"e")):
        writer = RecordWriter(tmp_path / name, start=START)
        writer.append(recorded_batch(0, digest=digest))
        heads.append(writer.head)
    assert heads[0] == heads[1] != heads[2]
